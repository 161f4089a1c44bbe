//! (being written)
use super::{Rule, Truth, Viewer};
use crate::change::Value;
use crate::policy::facts::{FactBinding, Facts, Side};

impl Rule {
    /// The truth of the rule for a row and a viewer. `column(i)` is the row's value for `reads[i]`, as the stream has it;
    /// [`Value::Unchanged`] if it is absent, which makes the answer unsure.
    pub fn truth<'a>(
        &self,
        binding: &FactBinding,
        facts: &Facts,
        side: Side,
        column: &dyn Fn(usize) -> Value<'a>,
        viewer: &Viewer,
    ) -> Truth {
        let _ = (binding, facts, side, column, viewer);
        Truth::Unsure
    }
}
