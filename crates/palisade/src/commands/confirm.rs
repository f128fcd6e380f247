//! `confirm`: whoever could log in after the firewall was changed says so, and the change stays.

use palisade_host::firewall::pending::{Book, PendingError};

use crate::cli::StackArgs;
use crate::confirmation;
use crate::exit::{Answer, Failure};

/// Makes what waits stay.
pub(crate) fn run(args: &StackArgs, yes: bool) -> Result<Answer, Failure> {
    if !nix::unistd::geteuid().is_root() {
        return Err(Failure::lacking("`palisade confirm` needs root", "run `sudo palisade confirm`"));
    }
    let book = Book::of(args.realm());
    match book.confirm(&confirmation::session(), yes) {
        Ok(pending) => {
            eprintln!("confirmed: the firewall of stack {} stays", pending.project);
            Ok(Answer::Yes)
        }
        Err(error @ PendingError::Nothing) => {
            eprintln!("{error}");
            Ok(Answer::No)
        }
        Err(error) => {
            let hint = error.hint();
            let failure = Failure::new("can't confirm the firewall", error);
            Err(hint.into_iter().fold(failure, Failure::hint))
        }
    }
}
