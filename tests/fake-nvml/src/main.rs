//! Makes and changes nodes by hand.
fn main() {}
