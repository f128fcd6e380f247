//! A stack with an edge: brought up, asked from the internet, updated while somebody asks, hurt, and taken down.

mod load;
mod shop;
mod up;
mod update;
