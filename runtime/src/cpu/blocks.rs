//! How a contraction is cut: into blocks for threads, tiles of K and strips of rows for the caches.

/// Work below which a contraction stays on one thread, in flops of a product.
const SERIAL: usize = 1 << 20;
/// Work of a task, about.
const TASK: usize = 4 << 20;
/// Tasks of a contraction, about, at most.
const TASKS: usize = 48;
/// What a step of the epilogue costs per result, in flops of a product.
const STEP: usize = 8;
/// Results of a strip, about: they stay in the first caches until the epilogue has read them.
const STRIP: usize = 16 << 10;
/// Words of a tile of the right operand, about: it stays in the second cache while strips pass by.
const TILE: usize = 160 << 10;
/// Results of a block, about, at most, if they must wait for further tiles of K.
const HELD: usize = 128 << 10;
/// Depth of a tile of K, at most.
const DEPTH: usize = 1024;

/// What is to be cut.
pub(crate) struct Extents {
    pub(crate) batch: usize,
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Steps of the epilogue; 0: the product is stored as it is.
    pub(crate) epilogue: usize,
}

/// The cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Rows and columns of a block, the share of the results that is computed at a time by one thread.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Depth of a tile of K. It decides the order of sums, so it depends on `n` and `k` alone.
    pub(crate) depth: usize,
    /// Rows of a strip.
    pub(crate) strip: usize,
    /// Batch entries of a task.
    pub(crate) batches: usize,
    /// Whether it is worth several threads.
    pub(crate) parallel: bool,
}

/// `n` cut into equal pieces of `most` or a little more, each a multiple of `unit`.
fn pieces(n: usize, most: usize, unit: usize) -> usize {
    if n <= most + most / 4 { n } else { n.div_ceil(n.div_ceil(most)).next_multiple_of(unit).min(n) }
}

impl Blocks {
    pub(crate) fn new(of: &Extents) -> Blocks {
        let &Extents { batch, m, n, k, epilogue } = of;
        // The epilogue likes long rows: it pays for each piece of one.
        let widest = pieces(n, if epilogue == 0 { 512 } else { 1024 }, 64).max(1);
        let depth = pieces(k, (TILE / n.clamp(64, 1024)).clamp(128, DEPTH), 16).max(1);
        let each = (2 * m * n * k).saturating_add(m * n * epilogue * STEP);
        let work = each.saturating_mul(batch);
        let wanted = if work < SERIAL { 1 } else { (work / TASK).clamp(4, TASKS) };
        let (mut rows, mut cols) = (m.max(1), widest);
        let blocks = |rows: usize, cols: usize| batch * m.div_ceil(rows) * n.div_ceil(cols);
        // Where tiles of K are many, they are read again for every block.
        let least = if depth < k { 48 } else { 32 };
        if depth < k {
            rows = rows.min((HELD / cols).next_multiple_of(8).max(least));
        }
        while blocks(rows, cols) < wanted {
            if rows > least {
                let cut = m.div_ceil(rows) + 1;
                rows = m.div_ceil(cut).next_multiple_of(8).clamp(least, rows - 1);
            } else if cols > 64 && blocks(rows, cols) < 4 {
                cols = cols.div_ceil(2).next_multiple_of(64).min(cols - 1);
            } else {
                break;
            }
        }
        let strip = (STRIP / cols).next_multiple_of(8).clamp(8, 96);
        let batches = (TASK / 2 / each.max(1)).clamp(1, batch.div_ceil(4).max(1));
        Blocks { rows, cols, depth, strip, batches, parallel: work >= SERIAL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(batch: usize, m: usize, n: usize, k: usize, epilogue: usize) -> Blocks {
        Blocks::new(&Extents { batch, m, n, k, epilogue })
    }

    #[test]
    fn large_ones_give_all_threads_work() {
        for (batch, m, n, k, epilogue) in [
            (1, 2048, 768, 192, 14),
            (1, 192, 768, 2048, 25),
            (1, 512, 256, 256, 8),
            (1, 32, 1152, 192, 1),
            (96, 64, 64, 64, 1),
            (1, 1024, 1024, 1024, 0),
        ] {
            let b = blocks(batch, m, n, k, epilogue);
            let tasks = batch.div_ceil(b.batches) * m.div_ceil(b.rows) * n.div_ceil(b.cols);
            assert!(b.parallel && tasks >= 4, "{tasks} tasks: {b:?}");
            assert!(b.depth * b.cols <= 2 * TILE, "{b:?}");
        }
    }

    #[test]
    fn nothing_is_a_block_too() {
        for (batch, m, n, k) in [(0, 3, 4, 5), (1, 0, 4, 5), (1, 3, 0, 5), (1, 3, 4, 0), (1, 1, 1, 1)] {
            let b = blocks(batch, m, n, k, 1);
            assert!(b.rows > 0 && b.cols > 0 && b.depth > 0 && b.strip > 0 && b.batches > 0, "{b:?}");
        }
    }

    #[test]
    fn the_depth_depends_on_columns_and_depth_alone() {
        for (n, k) in [(768, 2048), (64, 4096), (1, 5000), (3000, 3000)] {
            let depths: Vec<usize> =
                [(1, 1, 0), (7, 100, 3), (64, 4096, 20)].map(|(b, m, e)| blocks(b, m, n, k, e).depth).to_vec();
            assert!(depths.windows(2).all(|d| d[0] == d[1]), "{depths:?}");
        }
    }
}
