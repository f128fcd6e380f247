//! A stack with an edge: brought up, asked from the internet, updated while somebody asks, hurt, and taken down.

mod bad_days;
mod bans;
mod browser;
mod certificates_authority;
mod certificates_renewals;
mod commands;
mod drain;
mod events;
mod load;
mod ordered;
mod rehearsal;
mod shop;
mod turns;
mod up;
mod update;
mod upgrade;
mod web_sockets;
