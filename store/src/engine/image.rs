//! Memory images of a shard's keyspace, as its driver sees them: see [`crate::image`].
//!
//! [`Engine::finish_turn`] warms a restored keyspace by a bounded step. [`Engine::damage`] is to be asked after every event and
//! at the end of every turn, before anything leaves.

use super::Engine;
use crate::image::warm::WarmProgress;
use crate::image::{Damage, ImageBegin, ImagePart, ImageProgress, ImageRefusal};
use crate::time::Now;

impl Engine {
    /// What is wrong with the image the shard was started from, as far as a command or the background came across it.
    /// Answers of that turn may be made of keys that were not found: ask before messages, records or output leave, and end the
    /// server. Neither output nor effects are given out from then on.
    #[inline]
    pub fn damage(&self) -> Option<&Damage> {
        self.shared.as_deref().and_then(|shared| shared.keyspace.damage())
    }

    /// See [`Keyspace::begin_image`](crate::keyspace::Keyspace::begin_image).
    pub fn begin_image(&mut self, now: Now) -> Result<ImageBegin, ImageRefusal> {
        self.shared_mut().keyspace.begin_image(now)
    }

    /// See [`Keyspace::image_step`](crate::keyspace::Keyspace::image_step).
    pub fn image_step(&mut self, budget_bytes: usize, sink: &mut dyn FnMut(ImagePart<'_>)) -> bool {
        self.shared_mut().keyspace.image_step(budget_bytes, sink)
    }

    /// See [`Keyspace::end_image`](crate::keyspace::Keyspace::end_image).
    pub fn end_image(&mut self) {
        self.shared_mut().keyspace.end_image();
    }

    /// See [`Keyspace::abandon_image`](crate::keyspace::Keyspace::abandon_image).
    pub fn abandon_image(&mut self) {
        self.shared_mut().keyspace.abandon_image();
    }

    /// See [`Keyspace::image_progress`](crate::keyspace::Keyspace::image_progress).
    pub fn image_progress(&self) -> Option<ImageProgress> {
        self.shared().keyspace.image_progress()
    }

    /// See [`Keyspace::warm_progress`](crate::keyspace::Keyspace::warm_progress).
    pub fn warm_progress(&self) -> Option<WarmProgress> {
        self.shared().keyspace.warm_progress()
    }
}
