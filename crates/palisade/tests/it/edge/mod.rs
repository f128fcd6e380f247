//! A stack with an edge: brought up, asked from the internet, updated while somebody asks, hurt, and taken down.

mod shop;
mod up;
