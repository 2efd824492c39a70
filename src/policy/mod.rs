//! The file with the administrator's policy: its form, and what becomes of it while Lictor runs.

mod file;
mod follow;

pub use file::{BadPolicy, parse};
pub use follow::{Followed, PolicyFile};
