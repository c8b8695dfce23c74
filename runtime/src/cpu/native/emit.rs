//! From bodies to machine code: AVX-512, sixteen elements at a time.
//!
//! A pass walks rows; of each row it takes blocks of [`VECTORS`] vectors, then what is left under a mask. Vector `j`
//! of a block goes to accumulator `j` of a row's sum, so the lanes of a sum are those of [`super::super::ops`].
//!
//! `rdi` points to the streams (address and bytes from row to row, by turns), `rsi` counts rows, `rdx` holds the
//! points of a row, `rcx` points to the constants; `r8` is the place in the row, `r9` the points that are
//! left. The first streams have registers of their own, the others are fetched through `rax`.

use super::body::{Id, Node, One, Storage, Test, Three, Two};
use super::code::Code;
use dnx_ir::ReduceKind;
use iced_x86::code_asm::*;
use iced_x86::{IcedError, Register};

/// Vectors of a block: as many as the lanes of a sum make.
const VECTORS: usize = 4;
const LANES: i32 = 16;
const REGISTERS: usize = 32;

/// What a pass leaves behind.
#[derive(Clone, Copy, Debug)]
pub(super) enum Output {
    /// The elements, to a stream; `late`: after all loads of the same points. Those of `bf16` are rounded already.
    Store { stream: usize, late: bool, storage: Storage },
    /// A row's sum or maximum, to an element of a stream.
    Reduce(ReduceKind, usize),
    /// Added to (or compared with) what the stream holds, the same for all rows.
    Accumulate(ReduceKind, usize),
}

/// A pass to be emitted.
pub(super) struct Pass<'a> {
    pub(super) nodes: &'a [Node],
    pub(super) outputs: &'a [(Id, Output)],
    pub(super) streams: usize,
}

/// Why there is no code.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    #[error("more values live at once than there are registers")]
    Registers,
    #[error("{0}")]
    Assembler(IcedError),
    #[error("no executable memory: {0}")]
    Memory(std::io::Error),
}

impl From<IcedError> for Refused {
    fn from(e: IcedError) -> Refused {
        Refused::Assembler(e)
    }
}

const BASES: [AsmRegister64; 8] = [r10, r11, rbx, r12, r14, r15, rbp, r13];

struct Emitter<'a> {
    asm: CodeAssembler,
    pass: &'a Pass<'a>,
    constants: Vec<u32>,
    /// The last node that reads each node, or its own place; nodes that outputs keep to the end last to the end.
    last: Vec<usize>,
    needed: Vec<bool>,
    /// The first accumulator of each output that is a reduction.
    accumulators: Vec<Option<usize>>,
    free: Vec<u8>,
    at: Vec<Option<u8>>,
}

fn vector(i: usize) -> AsmRegisterZmm {
    registers::get_zmm(Register::ZMM0 + i as u32).expect("there are 32 of them")
}

impl Pass<'_> {
    /// The machine code of the pass.
    pub(super) fn emit(&self) -> Result<Code, Refused> {
        let count = self.nodes.len();
        let mut needed = vec![false; count];
        let mut last: Vec<usize> = (0..count).collect();
        for &(id, output) in self.outputs {
            needed[id] = true;
            if matches!(output, Output::Store { late: true, .. }) {
                last[id] = count;
            }
        }
        // Operands come before what reads them.
        for i in (0..count).rev() {
            if needed[i] {
                for r in self.nodes[i].reads() {
                    needed[r] = true;
                    last[r] = last[r].max(i);
                }
            }
        }
        let mut accumulators = vec![None; self.outputs.len()];
        let mut top = REGISTERS;
        for (at, (_, output)) in self.outputs.iter().enumerate() {
            if matches!(output, Output::Reduce(..)) {
                top = top.checked_sub(VECTORS).ok_or(Refused::Registers)?;
                accumulators[at] = Some(top);
            }
        }
        if top < 8 {
            return Err(Refused::Registers);
        }
        let mut e = Emitter {
            asm: CodeAssembler::new(64)?,
            pass: self,
            constants: vec![],
            last,
            needed,
            accumulators,
            free: (0..top as u8).rev().collect(),
            at: vec![None; count],
        };
        e.function()?;
        Code::new(&e.asm.assemble(0)?, e.constants).map_err(Refused::Memory)
    }
}

impl Emitter<'_> {
    fn function(&mut self) -> Result<(), Refused> {
        let own = self.pass.streams.min(BASES.len());
        let saved = [rbx, rbp, r12, r13, r14, r15];
        for r in saved {
            self.asm.push(r)?;
        }
        for (i, &base) in BASES[..own].iter().enumerate() {
            self.asm.mov(base, qword_ptr(rdi + 16 * i as i32))?;
        }
        let (mut row, mut block, mut rest, mut done) =
            (self.asm.create_label(), self.asm.create_label(), self.asm.create_label(), self.asm.create_label());
        self.asm.set_label(&mut row)?;
        self.asm.xor(r8d, r8d)?;
        self.asm.mov(r9, rdx)?;
        for (at, &(_, output)) in self.pass.outputs.iter().enumerate() {
            let (Output::Reduce(kind, _), Some(first)) = (output, self.accumulators[at]) else { continue };
            for j in 0..VECTORS {
                let acc = vector(first + j);
                match kind {
                    ReduceKind::Sum => self.asm.vpxord(acc, acc, acc)?,
                    ReduceKind::Max => {
                        let least = self.constant(f32::NEG_INFINITY.to_bits());
                        self.asm.vbroadcastss(acc, dword_ptr(rcx + least))?;
                    }
                }
            }
        }
        let step = LANES * VECTORS as i32;
        self.asm.set_label(&mut block)?;
        self.asm.cmp(r9, step)?;
        self.asm.jl(rest)?;
        for j in 0..VECTORS {
            self.body(j, false)?;
        }
        self.asm.add(r8, step)?;
        self.asm.sub(r9, step)?;
        self.asm.jmp(block)?;
        self.asm.set_label(&mut rest)?;
        for j in 0..VECTORS {
            self.asm.test(r9, r9)?;
            self.asm.jle(done)?;
            self.asm.mov(eax, 0xffffu32)?;
            self.asm.bzhi(eax, eax, r9d)?;
            self.asm.kmovw(k2, eax)?;
            self.body(j, true)?;
            self.asm.sub(r9, LANES)?;
        }
        self.asm.set_label(&mut done)?;
        for (at, &(_, output)) in self.pass.outputs.iter().enumerate() {
            if let (Output::Reduce(kind, stream), Some(first)) = (output, self.accumulators[at]) {
                self.total(kind, stream, first)?;
            }
        }
        for stream in 0..self.pass.streams {
            let place = 16 * stream as i32;
            if stream < own {
                self.asm.add(BASES[stream], qword_ptr(rdi + place + 8))?;
            } else {
                self.asm.mov(rax, qword_ptr(rdi + place + 8))?;
                self.asm.add(qword_ptr(rdi + place), rax)?;
            }
        }
        self.asm.dec(rsi)?;
        self.asm.jnz(row)?;
        for r in saved.into_iter().rev() {
            self.asm.pop(r)?;
        }
        self.asm.vzeroupper()?;
        self.asm.ret()?;
        Ok(())
    }

    /// The offset of a constant.
    fn constant(&mut self, bits: u32) -> i32 {
        let at = self.constants.iter().position(|&c| c == bits).unwrap_or_else(|| {
            self.constants.push(bits);
            self.constants.len() - 1
        });
        4 * at as i32
    }

    /// The register that holds a stream's address; it may be `rax`, until the next call.
    fn base(&mut self, stream: usize) -> Result<AsmRegister64, Refused> {
        if let Some(&base) = BASES.get(stream) {
            return Ok(base);
        }
        self.asm.mov(rax, qword_ptr(rdi + 16 * stream as i32))?;
        Ok(rax)
    }

    fn take(&mut self) -> Result<u8, Refused> {
        self.free.pop().ok_or(Refused::Registers)
    }

    /// One vector of a block. All vectors use the same registers.
    fn body(&mut self, j: usize, masked: bool) -> Result<(), Refused> {
        for i in 0..self.pass.nodes.len() {
            if !self.needed[i] {
                continue;
            }
            let node = self.pass.nodes[i];
            if !matches!(node, Node::Splat(_) | Node::Word(_)) {
                self.compute(i, node, j, masked)?;
            }
            for at in 0..self.pass.outputs.len() {
                let (id, output) = self.pass.outputs[at];
                if id == i && !matches!(output, Output::Store { late: true, .. }) {
                    self.output(at, id, output, j, masked)?;
                }
            }
            self.release(i, i);
            for r in node.reads() {
                self.release(r, i);
            }
        }
        for at in 0..self.pass.outputs.len() {
            let (id, output) = self.pass.outputs[at];
            if matches!(output, Output::Store { late: true, .. }) {
                self.output(at, id, output, j, masked)?;
            }
        }
        for id in 0..self.at.len() {
            self.release(id, usize::MAX);
        }
        Ok(())
    }

    /// Frees a node's register if node `now` was the last to read it.
    fn release(&mut self, id: Id, now: usize) {
        if self.last[id] <= now
            && let Some(r) = self.at[id].take()
        {
            self.free.push(r);
        }
    }

    /// A node in a register. A constant gets one for now, to be given back.
    fn register(&mut self, id: Id) -> Result<(AsmRegisterZmm, Option<u8>), Refused> {
        if let Some(r) = self.at[id] {
            return Ok((vector(r as usize), None));
        }
        let r = self.take()?;
        let from = self.memory(id)?.expect("only constants and splats have no register");
        self.asm.vbroadcastss(vector(r as usize), from.0)?;
        Ok((vector(r as usize), Some(r)))
    }

    /// The element in memory that a constant or a splat is, as it is and as an operand for all lanes.
    fn memory(&mut self, id: Id) -> Result<Option<(AsmMemoryOperand, AsmMemoryOperand)>, Refused> {
        Ok(match self.pass.nodes[id] {
            Node::Word(bits) => {
                let at = self.constant(bits);
                Some((dword_ptr(rcx + at), dword_bcst(rcx + at)))
            }
            Node::Splat(stream) => {
                let base = self.base(stream)?;
                Some((dword_ptr(base), dword_bcst(base)))
            }
            _ => None,
        })
    }

    fn give(&mut self, r: Option<u8>) {
        self.free.extend(r);
    }

    fn compute(&mut self, i: Id, node: Node, j: usize, masked: bool) -> Result<(), Refused> {
        let to = match node {
            Node::Splat(_) | Node::Word(_) => unreachable!("they are operands in memory"),
            Node::Load(stream, storage) => {
                let (r, base) = (self.take()?, self.base(stream)?);
                let (whole, half) = (base + r8 * 4 + 64 * j as i32, base + r8 * 2 + 32 * j as i32);
                let d = vector(r as usize);
                let to = if masked { d.k2().z() } else { d };
                match storage {
                    Storage::Word => self.asm.vmovups(to, zmmword_ptr(whole))?,
                    Storage::F16 => self.asm.vcvtph2ps(to, ymmword_ptr(half))?,
                    Storage::Bf16 => {
                        self.asm.vpmovzxwd(to, ymmword_ptr(half))?;
                        self.asm.vpslld(d, d, 16)?;
                    }
                }
                r
            }
            Node::One(op, a) => {
                let (x, held) = self.register(a)?;
                let r = self.take()?;
                let d = vector(r as usize);
                match op {
                    One::Sqrt => self.asm.vsqrtps(d, x)?,
                    One::Floor => self.asm.vrndscaleps(d, x, 0x09)?,
                    One::FromI => self.asm.vcvtdq2ps(d, x)?,
                    One::FromU => self.asm.vcvtudq2ps(d, x)?,
                    One::AbsI => self.asm.vpabsd(d, x)?,
                    One::Shl(n) => self.asm.vpslld(d, x, n as u32)?,
                    One::ShrI(n) => self.asm.vpsrad(d, x, n as u32)?,
                    One::ShrU(n) => self.asm.vpsrld(d, x, n as u32)?,
                    One::Rotate(n) => self.asm.vprold(d, x, n as u32)?,
                    One::RoundF16 => {
                        let half = registers::get_ymm(Register::YMM0 + r as u32).expect("there are 32 of them");
                        self.asm.vcvtps2ph(half, x, 0)?;
                        self.asm.vcvtph2ps(d, half)?;
                    }
                }
                self.give(held);
                r
            }
            Node::Two(op, a, b) => {
                use Two::*;
                let commutes = matches!(op, Add | Mul | AddI | MulI | MaxI | MaxU | MinI | MinU | And | Or | Xor);
                let (a, b) = if commutes && self.at[a].is_none() && self.at[b].is_some() { (b, a) } else { (a, b) };
                let (x, held) = self.register(a)?;
                let r = self.take()?;
                let d = vector(r as usize);
                macro_rules! two {
                    ($y:expr) => {
                        match op {
                            Add => self.asm.vaddps(d, x, $y)?,
                            Sub => self.asm.vsubps(d, x, $y)?,
                            Mul => self.asm.vmulps(d, x, $y)?,
                            Div => self.asm.vdivps(d, x, $y)?,
                            Max => self.asm.vmaxps(d, x, $y)?,
                            Min => self.asm.vminps(d, x, $y)?,
                            Scale => self.asm.vscalefps(d, x, $y)?,
                            AddI => self.asm.vpaddd(d, x, $y)?,
                            SubI => self.asm.vpsubd(d, x, $y)?,
                            MulI => self.asm.vpmulld(d, x, $y)?,
                            MaxI => self.asm.vpmaxsd(d, x, $y)?,
                            MaxU => self.asm.vpmaxud(d, x, $y)?,
                            MinI => self.asm.vpminsd(d, x, $y)?,
                            MinU => self.asm.vpminud(d, x, $y)?,
                            And => self.asm.vpandd(d, x, $y)?,
                            Or => self.asm.vpord(d, x, $y)?,
                            Xor => self.asm.vpxord(d, x, $y)?,
                        }
                    };
                }
                match (self.at[b], self.memory(b)?) {
                    (Some(y), _) => two!(vector(y as usize)),
                    (None, Some((_, y))) => two!(y),
                    (None, None) => unreachable!("computed before"),
                }
                self.give(held);
                r
            }
            Node::Three(op, a, b, c) => self.product_sum(i, op, a, b, c)?,
            Node::Pick(test, a, b, x, y) => {
                let (left, held) = self.register(a)?;
                macro_rules! compare {
                    ($right:expr) => {
                        match test {
                            Test::Float(p) => self.asm.vcmpps(k1, left, $right, p as u32)?,
                            Test::Signed(p) => self.asm.vpcmpd(k1, left, $right, p as u32)?,
                            Test::Unsigned(p) => self.asm.vpcmpud(k1, left, $right, p as u32)?,
                        }
                    };
                }
                match (self.at[b], self.memory(b)?) {
                    (Some(right), _) => compare!(vector(right as usize)),
                    (None, Some((_, right))) => compare!(right),
                    (None, None) => unreachable!("computed before"),
                }
                self.give(held);
                self.blend(x, y)?
            }
            Node::PickWord(word, x, y) => {
                let (w, held) = self.register(word)?;
                self.asm.vptestmd(k1, w, w)?;
                self.give(held);
                self.blend(x, y)?
            }
        };
        self.at[i] = Some(to);
        Ok(())
    }

    /// `x` where `k1` says so, else `y`.
    fn blend(&mut self, x: Id, y: Id) -> Result<u8, Refused> {
        let (no, held) = self.register(y)?;
        let r = self.take()?;
        let d = vector(r as usize);
        match (self.at[x], self.memory(x)?) {
            (Some(yes), _) => self.asm.vblendmps(d.k1(), no, vector(yes as usize))?,
            (None, Some((_, yes))) => self.asm.vblendmps(d.k1(), no, yes)?,
            (None, None) => unreachable!("computed before"),
        }
        self.give(held);
        Ok(r)
    }

    /// The result takes the place of an operand that nobody reads any more, or of a copy.
    fn product_sum(&mut self, i: Id, op: Three, a: Id, b: Id, c: Id) -> Result<u8, Refused> {
        let dies = |s: &Emitter, id: Id| s.at[id].is_some() && s.last[id] == i;
        // A factor in a register first.
        let (a, b) = if self.at[a].is_none() || (dies(self, b) && !dies(self, a)) { (b, a) } else { (a, b) };
        if dies(self, c) && c != a && c != b && !dies(self, a) {
            let r = self.at[c].take().expect("it has one");
            let (x, held) = self.register(a)?;
            let d = vector(r as usize);
            macro_rules! sum {
                ($y:expr) => {
                    match op {
                        Three::Add => self.asm.vfmadd231ps(d, x, $y)?,
                        Three::Sub => self.asm.vfmsub231ps(d, x, $y)?,
                        Three::From => self.asm.vfnmadd231ps(d, x, $y)?,
                    }
                };
            }
            match (self.at[b], self.memory(b)?) {
                (Some(y), _) => sum!(vector(y as usize)),
                (None, Some((_, y))) => sum!(y),
                (None, None) => unreachable!("computed before"),
            }
            self.give(held);
            return Ok(r);
        }
        let (x, held) = self.register(b)?;
        let r = if dies(self, a) && a != b && a != c {
            self.at[a].take().expect("it has one")
        } else {
            let r = self.take()?;
            match (self.at[a], self.memory(a)?) {
                (Some(from), _) => self.asm.vmovaps(vector(r as usize), vector(from as usize))?,
                (None, Some((from, _))) => self.asm.vbroadcastss(vector(r as usize), from)?,
                (None, None) => unreachable!("computed before"),
            }
            r
        };
        let d = vector(r as usize);
        macro_rules! sum {
            ($z:expr) => {
                match op {
                    Three::Add => self.asm.vfmadd213ps(d, x, $z)?,
                    Three::Sub => self.asm.vfmsub213ps(d, x, $z)?,
                    Three::From => self.asm.vfnmadd213ps(d, x, $z)?,
                }
            };
        }
        match (self.at[c], self.memory(c)?) {
            (Some(z), _) => sum!(vector(z as usize)),
            (None, Some((_, z))) => sum!(z),
            (None, None) => unreachable!("computed before"),
        }
        self.give(held);
        Ok(r)
    }

    fn output(&mut self, at: usize, id: Id, output: Output, j: usize, masked: bool) -> Result<(), Refused> {
        let (v, held) = self.register(id)?;
        let place = 64 * j as i32;
        match output {
            Output::Store { stream, storage, .. } => {
                let base = self.base(stream)?;
                let (whole, half) = (zmmword_ptr(base + r8 * 4 + place), ymmword_ptr(base + r8 * 2 + place / 2));
                let half = if masked { half.k2() } else { half };
                match storage {
                    Storage::Word => self.asm.vmovups(if masked { whole.k2() } else { whole }, v)?,
                    Storage::F16 => self.asm.vcvtps2ph(half, v, 0)?,
                    Storage::Bf16 => {
                        let r = self.take()?;
                        let high = vector(r as usize);
                        self.asm.vpsrld(high, v, 16)?;
                        self.asm.vpmovdw(half, high)?;
                        self.free.push(r);
                    }
                }
            }
            Output::Reduce(kind, _) => {
                let acc = vector(self.accumulators[at].expect("a reduction has accumulators") + j);
                let to = if masked { acc.k2() } else { acc };
                match kind {
                    ReduceKind::Sum => self.asm.vaddps(to, acc, v)?,
                    ReduceKind::Max => self.asm.vmaxps(to, v, acc)?,
                }
            }
            Output::Accumulate(kind, stream) => {
                let (r, base) = (self.take()?, self.base(stream)?);
                let (sum, memory) = (vector(r as usize), zmmword_ptr(base + r8 * 4 + place));
                self.asm.vmovups(if masked { sum.k2().z() } else { sum }, memory)?;
                match kind {
                    ReduceKind::Sum => self.asm.vaddps(sum, sum, v)?,
                    ReduceKind::Max => self.asm.vmaxps(sum, v, sum)?,
                }
                self.asm.vmovups(if masked { memory.k2() } else { memory }, sum)?;
                self.free.push(r);
            }
        }
        self.give(held);
        Ok(())
    }

    /// Adds the lanes of a row's reduction, as a tree, and stores the sum.
    fn total(&mut self, kind: ReduceKind, stream: usize, first: usize) -> Result<(), Refused> {
        let acc: Vec<AsmRegisterZmm> = (0..VECTORS).map(|j| vector(first + j)).collect();
        let asm = &mut self.asm;
        macro_rules! join {
            ($d:expr, $a:expr, $b:expr) => {
                match kind {
                    ReduceKind::Sum => asm.vaddps($d, $a, $b)?,
                    ReduceKind::Max => asm.vmaxps($d, $a, $b)?,
                }
            };
        }
        join!(zmm0, acc[0], acc[2]);
        join!(zmm1, acc[1], acc[3]);
        join!(zmm0, zmm0, zmm1);
        asm.vextractf64x4(ymm1, zmm0, 1)?;
        join!(ymm0, ymm0, ymm1);
        asm.vextractf128(xmm1, ymm0, 1)?;
        join!(xmm0, xmm0, xmm1);
        asm.vmovhlps(xmm1, xmm1, xmm0)?;
        join!(xmm0, xmm0, xmm1);
        asm.vmovshdup(xmm1, xmm0)?;
        join!(xmm0, xmm0, xmm1);
        let base = self.base(stream)?;
        self.asm.vmovss(dword_ptr(base), xmm0)?;
        Ok(())
    }
}
