//! The client's pointers, behind types that check them.
//!
//! Each type here has one pointer's layout and is what an exported function takes in that pointer's place.
//! None can be made in Rust: a value comes from a C caller, who promises by calling that the pointer is null
//! or fits NVML's declaration of the parameter. On that promise rests every `unsafe` block below.

use std::ffi::{CStr, c_char};

use crate::Code;

/// What NVML's functions answer: nothing, or a code that is not success.
pub(crate) type Answer = Result<(), Code>;

/// An opaque handle. It is a number that no memory has, and is never followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Handle(pub(crate) usize);

/// Where a result goes.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Out<T>(*mut T);

impl<T> Out<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes the result.
    pub(crate) fn put(self, value: T) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and so by the caller's promise the place of a `T`.
        unsafe { self.0.write(value) };
        Ok(())
    }

    /// The first word: the version that the caller wrote into a versioned struct.
    pub(crate) fn version(self) -> Result<u32, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and every versioned struct starts with a word that the caller wrote.
        Ok(unsafe { self.0.cast::<u32>().read() })
    }

    /// The same place, taken for another of the struct's versions, which the caller said it is.
    pub(crate) fn with_version<U>(self) -> Out<U> {
        Out(self.0.cast())
    }
}

impl Out<u32> {
    /// What the caller wrote there: a count that is read and written.
    pub(crate) fn get(self) -> Result<u32, Code> {
        self.version()
    }

    /// Writes a number of items.
    pub(crate) fn put_len(self, items: usize) -> Answer {
        self.put(u32::try_from(items).unwrap_or(u32::MAX))
    }
}

/// A buffer for text; its length is another parameter.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct TextOut(*mut c_char);

impl TextOut {
    /// Writes text and its final zero.
    pub(crate) fn put(self, text: &str, length: u32) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        if (length as usize) <= text.len() {
            return Err(Code::INSUFFICIENT_SIZE);
        }
        // SAFETY: the caller's buffer holds `length` bytes, more than the text has, and is not our text.
        unsafe { self.0.cast::<u8>().copy_from_nonoverlapping(text.as_ptr(), text.len()) };
        // SAFETY: as above; this is the byte after the text.
        let end = unsafe { self.0.add(text.len()) };
        // SAFETY: as above.
        unsafe { end.write(0) };
        Ok(())
    }
}

/// A struct from the caller.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct In<T>(*const T);

impl<T: Copy> In<T> {
    pub(crate) fn get(self) -> Result<T, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and so by the caller's promise a `T` that the caller wrote.
        Ok(unsafe { self.0.read() })
    }
}

/// Text from the caller.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct TextIn(*const c_char);

impl TextIn {
    pub(crate) fn get(self) -> Result<String, Code> {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        // SAFETY: not null, and so by the caller's promise a C string.
        let text = unsafe { CStr::from_ptr(self.0) };
        Ok(text.to_string_lossy().into_owned())
    }
}

/// An array from the caller; its length is another parameter.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(crate) struct Array<T>(*mut T);

impl<T> Array<T> {
    pub(crate) fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// Writes the items from the array's start. NVML's declaration says that it has room for them, by a
    /// length that was checked or by the most that the call can answer.
    pub(crate) fn put(self, items: impl IntoIterator<Item = T>) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        for (index, item) in items.into_iter().enumerate() {
            // SAFETY: within the array, as said above.
            let place = unsafe { self.0.add(index) };
            // SAFETY: as above.
            unsafe { place.write(item) };
        }
        Ok(())
    }

    /// Lets `fill` change each of `count` items that the caller wrote.
    pub(crate) fn each(self, count: usize, mut fill: impl FnMut(&mut T)) -> Answer {
        if self.0.is_null() {
            return Err(Code::INVALID_ARGUMENT);
        }
        for index in 0..count {
            // SAFETY: the caller says that there are `count` items.
            let place = unsafe { self.0.add(index) };
            // SAFETY: as above; the item is written, and nobody else has it during the call.
            fill(unsafe { &mut *place });
        }
        Ok(())
    }
}

/// Items into an array whose length the caller gives, as NVML does it throughout: without an array only the
/// count is answered; with one that is too small, the count and `INSUFFICIENT_SIZE`.
pub(crate) fn put_counted<T: Copy>(array: Array<T>, count: Out<u32>, items: Vec<T>) -> Answer {
    let room = count.get()?;
    count.put_len(items.len())?;
    if items.is_empty() || array.is_null() {
        return Ok(());
    }
    if (room as usize) < items.len() {
        return Err(Code::INSUFFICIENT_SIZE);
    }
    array.put(items)
}
