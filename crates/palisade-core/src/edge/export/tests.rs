//! What is written, for the parts that need no program to judge. That programs take it, and do it, is tested with them.
