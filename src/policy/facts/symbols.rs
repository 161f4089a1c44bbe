//! The distinct values of one fact table, each kept once and counted.
//!
//! A value is its canonical text. A uuid's 36 characters are kept as 16 bytes and other short texts in place, so that most values
//! cost no allocation of their own. A row holds a value's number, [`Symbol`]; within one table equal numbers are equal values.
//!
//! Rejected: one table of values for all facts. Comparing across tables is rare and as exact by [`Packed`]; a loaded table would
//! have to be renumbered on the hub's thread.

use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use super::probe::Probe;

/// A value's number in its table.
pub(in crate::policy) type Symbol = u32;

/// NULL in every table.
pub(in crate::policy) const NULL: Symbol = 0;

const SHORT: usize = 22;

/// A text in as little memory as is easy. Equal texts are equal here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::policy) enum Packed {
    Uuid([u8; 16]),
    Short(u8, [u8; SHORT]),
    Long(Box<[u8]>),
}

/// A text again.
pub(in crate::policy) enum Text<'a> {
    Uuid([u8; 36]),
    Borrowed(&'a [u8]),
}

impl Deref for Text<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Text::Uuid(text) => text,
            Text::Borrowed(text) => text,
        }
    }
}

impl Packed {
    pub(in crate::policy) fn text(&self) -> Text<'_> {
        match self {
            Packed::Uuid(bytes) => Text::Uuid(print_uuid(bytes)),
            Packed::Short(length, bytes) => Text::Borrowed(&bytes[..usize::from(*length)]),
            Packed::Long(bytes) => Text::Borrowed(bytes),
        }
    }

    /// Whether it is this text.
    pub(in crate::policy) fn is(&self, text: &[u8]) -> bool {
        match self {
            Packed::Uuid(bytes) => text.len() == 36 && print_uuid(bytes) == *text,
            Packed::Short(length, bytes) => bytes[..usize::from(*length)] == *text,
            Packed::Long(bytes) => **bytes == *text,
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Packed::Uuid(bytes) => View::Uuid(*bytes),
            Packed::Short(length, bytes) => View::Text(&bytes[..usize::from(*length)]),
            Packed::Long(bytes) => View::Text(bytes),
        }
    }

    /// Bytes outside of it.
    fn heap(&self) -> usize {
        match self {
            Packed::Long(bytes) => bytes.len().next_multiple_of(16) + 8,
            Packed::Uuid(_) | Packed::Short(..) => 0,
        }
    }
}

/// A text to be looked up, nothing copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum View<'a> {
    Uuid([u8; 16]),
    Text(&'a [u8]),
}

impl<'a> View<'a> {
    fn of(text: &'a [u8]) -> View<'a> {
        parse_uuid(text).map_or(View::Text(text), View::Uuid)
    }

    fn pack(self) -> Packed {
        match self {
            View::Uuid(bytes) => Packed::Uuid(bytes),
            View::Text(text) if text.len() <= SHORT => {
                let mut bytes = [0; SHORT];
                bytes[..text.len()].copy_from_slice(text);
                Packed::Short(text.len() as u8, bytes)
            }
            View::Text(text) => Packed::Long(text.into()),
        }
    }
}

impl Hash for View<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            View::Uuid(bytes) => state.write(bytes),
            View::Text(text) => state.write(text),
        }
    }
}

/// The 16 bytes of a uuid in the one form that Postgres prints; any other text is not one.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let text: &[u8; 36] = text.try_into().ok()?;
    if [text[8], text[13], text[18], text[23]] != [b'-'; 4] {
        return None;
    }
    let mut bytes = [0; 16];
    let mut at = 0;
    // A bit that only an illegal digit sets: one branch instead of thirty-two.
    let mut bad = 0;
    for byte in &mut bytes {
        at += usize::from(matches!(at, 8 | 13 | 18 | 23));
        let (high, low) = (DIGIT[usize::from(text[at])], DIGIT[usize::from(text[at + 1])]);
        bad |= high | low;
        *byte = (high << 4) | (low & 15);
        at += 2;
    }
    (bad < 16).then_some(bytes)
}

fn print_uuid(bytes: &[u8; 16]) -> [u8; 36] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [b'-'; 36];
    let mut at = 0;
    for byte in bytes {
        at += usize::from(matches!(at, 8 | 13 | 18 | 23));
        text[at] = DIGITS[usize::from(byte >> 4)];
        text[at + 1] = DIGITS[usize::from(byte & 15)];
        at += 2;
    }
    text
}

/// The value of a lower-case hexadecimal digit; 255 for any other byte.
const DIGIT: [u8; 256] = {
    let mut table = [255; 256];
    let mut i = 0;
    while i < 16 {
        table[b"0123456789abcdef"[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// The next number of [`Symbols::epoch`], which no two tables share.
static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);

fn next_epoch() -> u64 {
    // Only that it is unique matters.
    NEXT_EPOCH.fetch_add(1, Ordering::Relaxed)
}

/// The values of one table.
pub(super) struct Symbols {
    /// Another one whenever a number is given up, so that whoever remembers both may use the number.
    epoch: u64,
    /// By number; number 0 is NULL and has no text.
    texts: Vec<Packed>,
    /// How many cells hold each.
    uses: Vec<u32>,
    free: Vec<Symbol>,
    probe: Probe,
    hasher: ahash::RandomState,
    heap: usize,
}

impl Default for Symbols {
    fn default() -> Symbols {
        Symbols {
            epoch: next_epoch(),
            texts: Vec::new(),
            uses: Vec::new(),
            free: Vec::new(),
            probe: Probe::default(),
            hasher: ahash::RandomState::default(),
            heap: 0,
        }
    }
}

impl Symbols {
    /// A number that was found under this, which is never zero, still means the same if this is what it was; no other table,
    /// and no later one in its place, has it.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(super) fn packed(&self, symbol: Symbol) -> &Packed {
        &self.texts[symbol as usize]
    }

    /// The number of a text that some cell holds.
    pub(super) fn find(&self, text: &[u8]) -> Option<Symbol> {
        self.find_view(View::of(text))
    }

    /// The number of another table's value.
    pub(super) fn find_packed(&self, packed: &Packed) -> Option<Symbol> {
        self.find_view(packed.view())
    }

    fn find_view(&self, view: View<'_>) -> Option<Symbol> {
        self.probe.find(self.hasher.hash_one(view), |symbol| self.texts[symbol as usize].view() == view)
    }

    /// The number of a text, which one more cell holds.
    pub(super) fn take(&mut self, text: &[u8]) -> Symbol {
        let view = View::of(text);
        if let Some(symbol) = self.find_view(view) {
            self.uses[symbol as usize] += 1;
            return symbol;
        }
        if self.texts.is_empty() {
            self.texts.push(Packed::Short(0, [0; SHORT]));
            self.uses.push(0);
        }
        let packed = view.pack();
        self.heap += packed.heap();
        let symbol = match self.free.pop() {
            Some(symbol) => {
                self.texts[symbol as usize] = packed;
                self.uses[symbol as usize] = 1;
                symbol
            }
            None => {
                super::grow(&mut self.texts);
                super::grow(&mut self.uses);
                self.texts.push(packed);
                self.uses.push(1);
                (self.texts.len() - 1) as Symbol
            }
        };
        let (texts, hasher) = (&self.texts, &self.hasher);
        let hash = |symbol: u32| hasher.hash_one(texts[symbol as usize].view());
        self.probe.insert(hash(symbol), symbol, hash);
        symbol
    }

    /// One more cell holds the symbol.
    pub(super) fn share(&mut self, symbol: Symbol) -> Symbol {
        if symbol != NULL {
            self.uses[symbol as usize] += 1;
        }
        symbol
    }

    /// A cell no longer holds the symbol.
    pub(super) fn release(&mut self, symbol: Symbol) {
        if symbol == NULL {
            return;
        }
        self.uses[symbol as usize] -= 1;
        if self.uses[symbol as usize] > 0 {
            return;
        }
        let (texts, hasher) = (&self.texts, &self.hasher);
        let hash = |symbol: u32| hasher.hash_one(texts[symbol as usize].view());
        self.probe.remove(hash(symbol), |other| other == symbol, hash);
        self.heap -= self.texts[symbol as usize].heap();
        self.texts[symbol as usize] = Packed::Short(0, [0; SHORT]);
        super::grow(&mut self.free);
        self.free.push(symbol);
        self.epoch = next_epoch();
    }

    /// Memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        self.texts.capacity() * size_of::<Packed>()
            + (self.uses.capacity() + self.free.capacity()) * size_of::<u32>()
            + self.probe.bytes()
            + self.heap
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_value_is_small() {
        assert_eq!(size_of::<Packed>(), 24);
    }

    #[test]
    fn only_the_printed_form_of_a_uuid_is_packed_as_one() {
        let uuid = b"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11";
        assert!(matches!(View::of(uuid).pack(), Packed::Uuid(_)));
        for other in [
            "A0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1g",
            "a0eebc999c0b-4ef8-bb6d-6bb9bd380a11-",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1\u{e9}",
        ] {
            assert!(matches!(View::of(other.as_bytes()).pack(), Packed::Long(_)), "{other}");
        }
    }

    #[test]
    fn a_number_means_the_same_as_long_as_the_epoch_is_the_same() {
        let mut symbols = Symbols::default();
        let first = symbols.epoch();
        let old = symbols.take(b"old");
        symbols.share(old);
        symbols.release(old);
        assert_eq!(symbols.epoch(), first, "it is still held");
        symbols.release(old);
        assert_ne!(symbols.epoch(), first);
        assert_eq!(symbols.take(b"new"), old, "used again");
        assert!(Symbols::default().epoch() != symbols.epoch() && symbols.epoch() > 0);
    }

    proptest! {
        #[test]
        fn texts_come_back_and_are_found_while_they_are_held(
            texts in proptest::collection::vec(
                prop_oneof!["[a-c]{0,3}", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[a-z]{20,40}"], 1..60),
            releases in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
        ) {
            let mut symbols = Symbols::default();
            let mut held: Vec<(String, Symbol)> =
                texts.iter().map(|text| (text.clone(), symbols.take(text.as_bytes()))).collect();
            for release in releases {
                if held.is_empty() { break; }
                let (_, symbol) = held.swap_remove(release.index(held.len()));
                symbols.release(symbol);
            }
            for (text, symbol) in &held {
                prop_assert_eq!(&*symbols.packed(*symbol).text(), text.as_bytes());
                prop_assert!(symbols.packed(*symbol).is(text.as_bytes()));
                prop_assert_eq!(symbols.find(text.as_bytes()), Some(*symbol));
                prop_assert_eq!(symbols.find_packed(symbols.packed(*symbol)), Some(*symbol));
            }
            for text in &texts {
                let expected = held.iter().find(|(other, _)| other == text).map(|(_, symbol)| *symbol);
                prop_assert_eq!(symbols.find(text.as_bytes()), expected);
            }
        }
    }
}
