//! Fields of a binary header as a table: the code reads and writes through it, and a test lays it beside the
//! tables of `docs/formats/`. All numbers are little-endian. The crate `snapshot` has its tables in this form,
//! too.

/// One field of a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// As the document calls it.
    pub name: &'static str,
    /// First byte.
    pub offset: usize,
    /// Number of bytes.
    pub size: usize,
}

impl Field {
    /// A field of `size` bytes from `offset` on.
    pub const fn new(name: &'static str, offset: usize, size: usize) -> Field {
        Field { name, offset, size }
    }

    /// Writes the field. The value must have its size.
    pub fn put(self, bytes: &mut [u8], value: &[u8]) {
        bytes[self.offset..self.offset + self.size].copy_from_slice(value);
    }

    /// The field's bytes; there must be so many.
    pub fn get(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.offset..self.offset + self.size]
    }

    /// A field of four bytes as a number.
    pub fn u32(self, bytes: &[u8]) -> u32 {
        u32::from_le_bytes(self.get(bytes).try_into().expect("a field of four bytes"))
    }

    /// A field of eight bytes as a number.
    pub fn u64(self, bytes: &[u8]) -> u64 {
        u64::from_le_bytes(self.get(bytes).try_into().expect("a field of eight bytes"))
    }
}

/// True if the fields follow each other without a hole from the first byte to `end`: for assertions at
/// compile time.
pub const fn is_dense(fields: &[Field], end: usize) -> bool {
    let (mut index, mut at) = (0, 0);
    while index < fields.len() {
        if fields[index].offset != at {
            return false;
        }
        at += fields[index].size;
        index += 1;
    }
    at == end
}
