//! MPI as a transport: processes started by `mpirun` (or another launcher of an MPI library) on one host or several.
//!
//! It needs cargo feature `mpi`, and to build it an MPI library with its compiler `mpicc` (Debian: `libopenmpi-dev`, and
//! `openmpi-bin` to run); no libclang. What dnx uses of MPI is the few functions of `mpi.c`, which `mpicc` compiles,
//! so any MPI library of version 3 will do.
//!
//! ```text
//! mpirun -n 4 dnx ...                  # four processes on this host
//! mpirun --host a,b -n 2 dnx ...       # one on each of two hosts
//! ```
//!
//! A process that dies is noticed by `mpirun`, which ends the others and says which it was; where it does not, the
//! others miss its signs of life (see [`super::super::Team::across`]).

use super::Transport;
use crate::{Error, Result};
use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Bytes of one MPI message; larger ones of ours are several. One of just so many is followed by another.
const CHUNK: usize = 64 << 20;

/// Buffers kept to be used again.
const SPARE: usize = 8;

unsafe extern "C" {
    fn dnx_mpi_begin(rank: *mut c_int, size: *mut c_int) -> c_int;
    fn dnx_mpi_end() -> c_int;
    fn dnx_mpi_send(bytes: *const c_void, count: c_int, to: c_int, tag: c_int, request: *mut *mut c_void) -> c_int;
    fn dnx_mpi_sent(request: *mut c_void, done: *mut c_int) -> c_int;
    fn dnx_mpi_look(from: c_int, tag: c_int, found: *mut c_int, count: *mut c_int, message: *mut *mut c_void) -> c_int;
    fn dnx_mpi_receive(bytes: *mut c_void, count: c_int, message: *mut c_void) -> c_int;
    fn dnx_mpi_error(code: c_int, text: *mut c_char, room: c_int);
}

/// The processes of an MPI job.
pub struct Mpi {
    rank: usize,
    size: usize,
    /// MPI ends on the thread on which it began.
    thread: ThreadId,
    /// Held for every call of MPI.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    over: bool,
    sends: VecDeque<Outgoing>,
    spare: Vec<Vec<u8>>,
}

/// A message that is on its way.
struct Outgoing {
    tag: u32,
    request: *mut c_void,
    bytes: Vec<u8>,
}

// The request is MPI's, which is called by one thread at a time.
unsafe impl Send for Outgoing {}

impl Mpi {
    /// Joins the job that this process was started in; once per process, before threads that use MPI, and on the thread
    /// that will [`Mpi::finish`].
    ///
    /// # Errors
    /// If MPI can't begin.
    pub fn join() -> Result<Arc<Mpi>> {
        static JOINED: Mutex<bool> = Mutex::new(false);
        let mut joined = JOINED.lock().unwrap_or_else(|p| p.into_inner());
        if std::mem::replace(&mut *joined, true) {
            return Err(Error::Team("this process has joined its MPI job before".to_string()));
        }
        let (mut rank, mut size) = (0, 0);
        // SAFETY: it is called once.
        match unsafe { dnx_mpi_begin(&mut rank, &mut size) } {
            0 => {}
            -1 => return Err(Error::Team("this MPI library allows one thread only; dnx has several".to_string())),
            code => return Err(Error::Team(format!("MPI can't begin: {}", words(code)))),
        }
        let thread = std::thread::current().id();
        Ok(Arc::new(Mpi { rank: rank as usize, size: size as usize, thread, state: Mutex::default() }))
    }

    /// Leaves the job. Every process calls it when its last run is over, on the thread on which it joined; `mpirun` takes
    /// one that ends without for failed, and ends the others.
    ///
    /// # Errors
    /// If it is called on another thread, or MPI fails.
    pub fn finish(&self) -> Result<()> {
        if std::thread::current().id() != self.thread {
            return Err(Error::Team("MPI ends on the thread on which it began".to_string()));
        }
        let mut state = self.state();
        let until = Instant::now() + Duration::from_secs(2);
        let failed = |why: String| Error::Team(format!("MPI can't end: {why}"));
        while !state.sends.is_empty() && Instant::now() < until {
            reap(&mut state).map_err(failed)?;
        }
        if std::mem::replace(&mut state.over, true) {
            return Ok(());
        }
        // SAFETY: MPI has begun on this thread, and nobody calls it now or later.
        code(unsafe { dnx_mpi_end() }).map_err(failed)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn at_work(&self) -> Result<MutexGuard<'_, State>, String> {
        let state = self.state();
        if state.over { Err("this process has left its MPI job".to_string()) } else { Ok(state) }
    }
}

/// MPI's words for an error code.
fn words(code: c_int) -> String {
    let mut text: [c_char; 512] = [0; 512];
    // SAFETY: the room is that of the text.
    unsafe { dnx_mpi_error(code, text.as_mut_ptr(), text.len() as c_int) };
    let bytes: Vec<u8> = text.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
    format!("{} (code {code})", String::from_utf8_lossy(&bytes))
}

fn code(code: c_int) -> Result<(), String> {
    if code == 0 { Ok(()) } else { Err(words(code)) }
}

/// Forgets what was sent.
fn reap(state: &mut State) -> Result<(), String> {
    let mut at = 0;
    while at < state.sends.len() {
        let mut done = 0;
        // SAFETY: the request is one that was not done before.
        code(unsafe { dnx_mpi_sent(state.sends[at].request, &mut done) })?;
        if done == 0 {
            at += 1;
            continue;
        }
        let sent = state.sends.remove(at).expect("it is there");
        if state.spare.len() < SPARE {
            state.spare.push(sent.bytes);
        }
    }
    Ok(())
}

impl Transport for Mpi {
    fn processes(&self) -> usize {
        self.size
    }

    fn process(&self) -> usize {
        self.rank
    }

    fn post(&self, to: usize, tag: u32, bytes: &[u8]) -> Result<(), String> {
        let mut state = self.at_work()?;
        reap(&mut state)?;
        let whole = bytes.len() / CHUNK * CHUNK;
        for chunk in bytes[..whole].chunks(CHUNK).chain([&bytes[whole..]]) {
            let mut bytes = state.spare.pop().unwrap_or_default();
            bytes.clear();
            bytes.extend_from_slice(chunk);
            let mut request = std::ptr::null_mut();
            // SAFETY: the bytes stay where they are until the request is done.
            code(unsafe {
                dnx_mpi_send(bytes.as_ptr().cast(), bytes.len() as c_int, to as c_int, tag as c_int, &mut request)
            })?;
            state.sends.push_back(Outgoing { tag, request, bytes });
        }
        Ok(())
    }

    fn take(&self, from: usize, tag: u32, into: &mut Vec<u8>) -> Result<bool, String> {
        let _state = self.at_work()?;
        into.clear();
        loop {
            let (mut found, mut count, mut message) = (0, 0, std::ptr::null_mut());
            // SAFETY: out parameters of this frame.
            code(unsafe { dnx_mpi_look(from as c_int, tag as c_int, &mut found, &mut count, &mut message) })?;
            if found == 0 {
                // Chunks are posted together: the next is a moment away.
                if into.is_empty() {
                    return Ok(false);
                }
                continue;
            }
            let (at, count) = (into.len(), count as usize);
            into.resize(at + count, 0);
            // SAFETY: the message was found, and there is room for it.
            code(unsafe { dnx_mpi_receive(into[at..].as_mut_ptr().cast(), count as c_int, message) })?;
            if count < CHUNK {
                return Ok(true);
            }
        }
    }

    fn is_settled(&self, tag: u32) -> Result<bool, String> {
        let mut state = self.at_work()?;
        reap(&mut state)?;
        Ok(state.sends.iter().all(|s| s.tag != tag))
    }
}
