//! (see the module list in `host`)
