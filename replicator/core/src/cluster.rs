//! Placement and replacement of copies, as functions of what is known.
