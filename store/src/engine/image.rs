//! Memory images of a shard's keyspace, as its driver sees them: see [`crate::image`].
//!
//! [`Engine::finish_turn`] warms a restored keyspace by a bounded step. [`Engine::damage`] is to be asked after every event and
//! at the end of every turn, before anything leaves.

use super::{Engine, Shared, WARM_BUDGET};
use crate::image::warm::WarmProgress;
use crate::image::{Damage, ImageBegin, ImagePart, ImageProgress, ImageRefusal};
use crate::time::Now;
use alloc::sync::Arc;
use core::sync::atomic::AtomicU64;

impl Shared {
    /// Goes on warming up to so many bytes, by a step. True: there is more to do at once.
    pub(super) fn warm(&mut self, bound: u64) -> bool {
        let position = self.keyspace.warm_position();
        if position >= bound {
            return false;
        }
        let is_more = self.keyspace.warm_step(WARM_BUDGET.min((bound - position) as usize));
        if let Some(progress) = self.keyspace.warm_progress() {
            self.metrics.warm = progress;
        }
        is_more
    }
}

impl Shared {
    /// How far the image is read in that the shard was started from.
    pub(crate) fn warm_figures(&self) -> WarmProgress {
        let last = self.metrics.warm;
        // Where it has ended, nothing is left in the file but what was to stay there.
        self.keyspace.warm_progress().unwrap_or(WarmProgress {
            checked_bytes: last.total_bytes,
            warmed_bytes: last.total_bytes - last.kept_bytes,
            ..last
        })
    }
}

impl Engine {
    /// Warming goes no further than so many bytes of the image: whoever reads the file ahead raises the bound.
    pub fn bound_warming(&mut self, bound: Arc<AtomicU64>) {
        self.warm_bound = Some(bound);
    }

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
