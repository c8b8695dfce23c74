//! Meetings across processes: what each process of a group sends to the others, and where what it receives is put.
//!
//! One member of the group in each process speaks for all of them. Before the work it sends to every other process just
//! those bytes of its members' operands that the work there reads, and lays what it receives in *images* of the absent
//! operands; the work then is as at home. Of an all-reduce each process makes a part, as if the group were of processes,
//! and sends it to the others afterwards.
//!
//! Operands cross as they are and are summed where they are wanted, in the order of ranks: the bits are those of one
//! process, however ranks are divided among processes. The price is that a process with several members of a group
//! sends them all, not their sum: an all-reduce of `S` bytes with `k` members in each of `p` processes sends
//! `(k + 1) (p - 1) / p S` from each process, where a ring of processes would send `2 (p - 1) / p S`.

use super::host::Move;
use super::links::{GROUPS, Links, Trouble};
use super::room::Room;
use crate::company::Span;
use crate::cpu::CpuMemory;
use crate::{Error, Result};
use std::ops::Range;
use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

/// What crosses for one meeting of one group.
pub(super) struct Abroad {
    tag: u32,
    peers: Vec<Peer>,
    /// By part of this process's share of an all-reduce the bytes; empty for other parts.
    share: Vec<Range<usize>>,
    /// Absent members' places and the images of their operands.
    images: Vec<(usize, Vec<Span>)>,
    /// Whether results cross too.
    pub(super) has_results: bool,
}

/// Another process of the group.
struct Peer {
    process: usize,
    sends: Vec<Piece>,
    receives: Vec<Piece>,
    /// As [`Abroad::share`].
    share: Vec<Range<usize>>,
}

/// Bytes of one member's operand.
struct Piece {
    part: usize,
    place: usize,
    ranges: Vec<Range<usize>>,
    /// Where the first range begins in the room's images.
    image: usize,
}

impl Piece {
    fn bytes(&self) -> usize {
        self.ranges.iter().map(Range::len).sum()
    }

    /// Bytes from the begin of the first range to the end of the last.
    fn extent(&self) -> usize {
        let (first, last) = (self.ranges.first(), self.ranges.last());
        first.zip(last).map_or(0, |(a, b)| b.end - a.start)
    }
}

/// The memory of a room's meetings: images of absent operands, and messages.
pub(super) struct Desk {
    images: CpuMemory,
    messages: RwLock<Messages>,
}

#[derive(Default)]
struct Messages {
    out: Vec<u8>,
    /// By peer.
    inboxes: Vec<(usize, Vec<u8>)>,
}

impl Desk {
    /// Memory for images of so many bytes.
    pub(super) fn new(bytes: usize) -> Result<Desk> {
        let images = CpuMemory::pack(&[bytes as u64]);
        let images =
            images.map_err(|_| Error::Team(format!("no memory for {bytes} bytes of other processes' operands")))?;
        Ok(Desk { images: images[0].clone(), messages: RwLock::default() })
    }

    fn write(&self) -> RwLockWriteGuard<'_, Messages> {
        self.messages.write().unwrap_or_else(|p| p.into_inner())
    }

    fn read(&self) -> RwLockReadGuard<'_, Messages> {
        self.messages.read().unwrap_or_else(|p| p.into_inner())
    }
}

/// How the members of a group are divided among processes.
pub(super) struct Division {
    /// Process and places of its members, in order.
    pub(super) processes: Vec<(usize, Vec<usize>)>,
    /// This process's position among them.
    pub(super) own: usize,
}

impl Division {
    /// The division of these members; `None` if all are in this process.
    pub(super) fn new(members: &[usize], links: Option<&Links>) -> Option<Division> {
        let links = links?;
        let mut processes: Vec<(usize, Vec<usize>)> = vec![];
        for (place, &rank) in members.iter().enumerate() {
            let process = links.process_of(rank);
            match processes.iter_mut().find(|(p, _)| *p == process) {
                Some((_, places)) => places.push(place),
                None => processes.push((process, vec![place])),
            }
        }
        let own = processes.iter().position(|(p, _)| *p == links.transport.process())?;
        (processes.len() > 1).then_some(Division { processes, own })
    }
}

impl Abroad {
    /// What crosses for these moves. Gives also the bytes of images it needs.
    pub(super) fn new(moves: &[Move], division: &Division, group: usize) -> (Abroad, usize) {
        let Division { processes, own } = division;
        let crew = |q: usize| (q, processes.len());
        let mut used = 0;
        let pieces = |from: &[usize], to: usize| -> Vec<Piece> {
            let each = moves.iter().enumerate().flat_map(|(part, m)| from.iter().map(move |&place| (part, m, place)));
            let piece = each.map(|(part, m, place)| {
                let ranges = m.needed(place, &processes[to].1, crew(to));
                Piece { part, place, ranges, image: 0 }
            });
            piece.filter(|p| p.bytes() > 0).collect()
        };
        let shares = |q: usize| moves.iter().map(|m| m.share(crew(q))).collect::<Vec<_>>();
        let mut peers = vec![];
        for (q, (process, places)) in processes.iter().enumerate().filter(|(q, _)| q != own) {
            let mut receives = pieces(places, *own);
            for piece in &mut receives {
                piece.image = used;
                used += piece.extent().next_multiple_of(64);
            }
            let sends = pieces(&processes[*own].1, q);
            peers.push(Peer { process: *process, sends, receives, share: shares(q) });
        }
        let share = shares(*own);
        let has_results = moves.iter().any(|m| m.is_fold());
        (Abroad { tag: GROUPS + group as u32, peers, share, images: vec![], has_results }, used)
    }

    /// Lays the images in the room's memory. `parts` is how many parts there are.
    pub(super) fn place(&mut self, desk: &Desk, parts: usize) {
        let nothing = Span { src: std::ptr::null(), dst: std::ptr::null_mut() };
        let mut images: Vec<(usize, Vec<Span>)> = vec![];
        for piece in self.peers.iter().flat_map(|p| &p.receives) {
            let at = images.iter().position(|(place, _)| *place == piece.place).unwrap_or_else(|| {
                images.push((piece.place, vec![nothing; parts]));
                images.len() - 1
            });
            // As if the whole operand were there; only the ranges are read.
            let begin = desk.images.ptr().wrapping_add(piece.image);
            images[at].1[piece.part].src = begin.wrapping_sub(piece.ranges[0].start);
        }
        self.images = images;
    }

    /// Sends operands and receives those of the others: between enter and leave of a room whose members at home all
    /// work on nothing else.
    ///
    /// # Safety
    /// As for [`Room::spans`].
    pub(super) unsafe fn operands(
        &self,
        room: &Room,
        desk: &Desk,
        links: &Links,
        waiting: &Waiting,
    ) -> Result<(), Trouble> {
        let mut messages = desk.write();
        let Messages { out, inboxes } = &mut *messages;
        let mut spans = vec![];
        for peer in &self.peers {
            out.clear();
            for piece in &peer.sends {
                // SAFETY: the caller's; ranges are of the operand.
                unsafe {
                    room.spans(piece.part, &mut spans);
                    let from = spans[piece.place].src;
                    for r in &piece.ranges {
                        out.extend_from_slice(std::slice::from_raw_parts(from.add(r.start), r.len()));
                    }
                }
            }
            links.transport.post(peer.process, self.tag, out).map_err(Trouble::Transport)?;
        }
        self.collect(inboxes, links, waiting)?;
        for (peer, (_, bytes)) in self.peers.iter().zip(&*inboxes) {
            check(bytes, peer.receives.iter().map(Piece::bytes).sum())?;
            let mut at = 0;
            for piece in &peer.receives {
                for r in &piece.ranges {
                    let to = piece.image + r.start - piece.ranges[0].start;
                    // SAFETY: the images have the pieces' extents, and only the one who speaks touches them now.
                    unsafe {
                        let to = desk.images.ptr().add(to);
                        std::ptr::copy_nonoverlapping(bytes[at..].as_ptr(), to, r.len());
                    }
                    at += r.len();
                }
            }
        }
        for (place, spans) in &self.images {
            // SAFETY: absent members bring nothing themselves.
            unsafe { room.bring(*place, spans) };
        }
        Ok(())
    }

    /// Sends this process's shares of all-reduces and receives those of the others, which [`Abroad::fetch`] then finds.
    ///
    /// # Safety
    /// As for [`Abroad::operands`]; the member at `place` has its results.
    pub(super) unsafe fn results(
        &self,
        room: &Room,
        place: usize,
        desk: &Desk,
        links: &Links,
        waiting: &Waiting,
    ) -> Result<(), Trouble> {
        let mut messages = desk.write();
        let Messages { out, inboxes } = &mut *messages;
        let mut spans = vec![];
        out.clear();
        for (part, r) in self.share.iter().enumerate().filter(|(_, r)| !r.is_empty()) {
            // SAFETY: the caller's; the range is of the result.
            unsafe {
                room.spans(part, &mut spans);
                out.extend_from_slice(std::slice::from_raw_parts(spans[place].dst.add(r.start), r.len()));
            }
        }
        for peer in &self.peers {
            links.transport.post(peer.process, self.tag, out).map_err(Trouble::Transport)?;
        }
        self.collect(inboxes, links, waiting)?;
        for (peer, (_, bytes)) in self.peers.iter().zip(&*inboxes) {
            check(bytes, peer.share.iter().map(Range::len).sum())?;
        }
        Ok(())
    }

    /// Copies the others' shares of all-reduces to a member's results.
    ///
    /// # Safety
    /// The spans are the member's, and nobody else touches its results.
    pub(super) unsafe fn fetch(&self, spans: &[Span], desk: &Desk) {
        let messages = desk.read();
        for (peer, (_, bytes)) in self.peers.iter().zip(&messages.inboxes) {
            let mut at = 0;
            for (part, r) in peer.share.iter().enumerate() {
                // SAFETY: the caller's; the lengths were checked when they came.
                unsafe {
                    let to = spans[part].dst.add(r.start);
                    std::ptr::copy_nonoverlapping(bytes[at..].as_ptr(), to, r.len());
                }
                at += r.len();
            }
        }
    }

    /// A message of every peer.
    fn collect(&self, inboxes: &mut Vec<(usize, Vec<u8>)>, links: &Links, waiting: &Waiting) -> Result<(), Trouble> {
        if inboxes.is_empty() {
            inboxes.extend(self.peers.iter().map(|p| (p.process, vec![])));
        }
        links.collect(self.tag, inboxes, waiting)
    }
}

/// For whom the one who speaks waits, how long beyond what is usual, and what makes it stop.
pub(super) struct Waiting<'a> {
    /// The ranks of the group.
    pub(super) members: &'a [usize],
    pub(super) limit: Duration,
    pub(super) stop: &'a dyn Fn() -> bool,
}

fn check(bytes: &[u8], expected: usize) -> Result<(), Trouble> {
    if bytes.len() == expected {
        return Ok(());
    }
    Err(Trouble::Transport(format!("a message has {} bytes instead of {expected}", bytes.len())))
}
