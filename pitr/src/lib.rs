//! Getting data out: recovery plan, restore, archive-get.
