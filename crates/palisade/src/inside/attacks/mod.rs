//! The attacks, by what they are after.
//!
//! None of them changes the machine when it succeeds: what would is called with arguments that make it fail after
//! the permission check, or undone at once.

mod escape;
mod exposure;
mod files;
mod host;
mod identity;
mod kinds;
mod machine;
mod outside;
mod spoof;

use super::attack::Attack;

/// All attacks.
pub(super) const ALL: &[&[Attack]] = &[
    identity::ATTACKS,
    spoof::ATTACKS,
    exposure::ATTACKS,
    host::ATTACKS,
    outside::ATTACKS,
    kinds::ATTACKS,
    escape::ATTACKS,
    machine::ATTACKS,
    files::ATTACKS,
];

/// One line a row of the tables.
macro_rules! attack {
    ($layer:ident, $id:literal, $title:literal, $threat:ident, $run:expr) => {
        $crate::inside::attack::Attack {
            id: $id,
            title: $title,
            threat: $threat,
            layer: $crate::inside::targets::Layer::$layer,
            run: $run,
        }
    };
}
use attack;
