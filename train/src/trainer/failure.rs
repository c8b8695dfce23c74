//! A loss that is not a number: which step, and which op first.

use super::Trainer;
use crate::{Error, Result};
use dnx_codegen::Precision;
use dnx_codegen::passes::{inline::inline, mixed::mixed};
use dnx_ir::Array;
use dnx_ir::interp::first_non_finite;
use dnx_models::step::{NO_BAD_STEP, Role};
use std::path::Path;

impl Trainer {
    /// Saves the state before the bad step and replays the step with the reference interpreter to name the op in
    /// which the first NaN or infinity appears. Gives the error that ends the run.
    pub(super) fn fail(&mut self, bad: u64, checkpoints: &Path) -> Error {
        self.step = bad;
        let saved = match self.save(checkpoints) {
            Ok(path) => format!("the state before it is kept in {}", path.display()),
            Err(why) => format!("its state could not be saved ({why})"),
        };
        let place = match self.replay(bad) {
            Ok(Some(place)) => place,
            Ok(None) => "replayed by the reference interpreter the step is finite, so the device's arithmetic is the \
                         cause; try --device cpu"
                .to_string(),
            Err(why) => format!("the step could not be replayed ({why})"),
        };
        let advice = match self.resolved.config.train.precision {
            Precision::F16 => {
                "the loss scale is at its least, so it is not to blame: set train.precision = \"bf16-storage\" for the \
                 range of f32, or lower optim.lr, then continue with --resume"
            }
            Precision::F32 | Precision::Bf16Storage | Precision::Fp8E4m3 | Precision::Fp8E5m2 => {
                "lower optim.lr or set optim.clip, then continue with --resume"
            }
        };
        Error::NonFinite(format!(
            "the loss or gradient of step {} is not finite.\n  {place}\n  {saved}\n  {advice}",
            bad + 1
        ))
    }

    /// Where the first non-finite number of step `bad` appears.
    fn replay(&self, bad: u64) -> Result<Option<String>> {
        let mut args: Vec<Array> = vec![];
        for (i, spec) in self.program.state.iter().enumerate() {
            args.push(match spec.role {
                Role::BadStep => Array::u32([], &[NO_BAD_STEP]),
                _ => self.placed.read(i)?,
            });
        }
        let constants = self.program.frozen_inputs().start..self.program.batch_inputs().start;
        for i in constants {
            args.push(self.placed.read(i)?);
        }
        args.extend(self.batch_arrays(&self.data.batch(bad, self.resolved.batch())?));
        let precision = self.resolved.config.train.precision;
        let narrowed = match precision {
            Precision::F32 => None,
            _ => Some(mixed(&inline(&self.program.func, &self.team.options())?, precision)?),
        };
        let Some(found) = first_non_finite(narrowed.as_ref().unwrap_or(&self.program.func), &args)? else {
            return Ok(None);
        };
        Ok(Some(format!("first in {}", found.to_string().replace('\n', "\n  "))))
    }
}
