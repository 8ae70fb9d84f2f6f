//! The plugin between the two fakes.
