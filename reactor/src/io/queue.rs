//! A bounded queue from one thread to one other: the cells below `server/mailbox.rs`.
//!
//! The indices run freely and wrap; what lies between `head` and `tail` is the consumer's, the rest the producer's.
//! Each end keeps its own index, and what it last saw of the other's, to itself: as long as that suffices, neither
//! touches a line the other writes. Each also publishes late, once for a batch ([`Producer::publish`],
//! [`Consumer::release`]), so a line changes hands once a batch and not once a message.
//!
//! Why not a crate: the queue is model-checked together with the protocol by which its ends fall asleep
//! (`tests/model`), so its atomics must be exchangeable, and publishing late is not what the known ones offer.

use super::sync::{Arc, AtomicBool, AtomicUsize, Ordering, UnsafeCell};
use std::mem::MaybeUninit;

/// On cache lines of its own: two, because processors fetch them in pairs.
#[repr(align(128))]
struct Apart<T>(T);

struct Queue<T> {
    /// Written by the consumer: the first that is not taken.
    head: Apart<AtomicUsize>,
    tail: Apart<ProducerEnd>,
    /// A power of two of them, at least `capacity`.
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    capacity: usize,
}

/// Written by the producer.
struct ProducerEnd {
    /// The first that is not filled.
    tail: AtomicUsize,
    /// The producer waits for room. The consumer takes it back when it has made some.
    starved: AtomicBool,
}

// SAFETY: slots from `head` up to `tail` are touched by the one consumer only, all others by the one producer only. The
// two exist once each, are not cloneable, and take `&mut self`; a slot changes sides with a Release store of an index
// that the other side reads with Acquire. So values move between threads (T: Send) and are never shared.
unsafe impl<T: Send> Sync for Queue<T> {}
// SAFETY: as above; the queue owns its values.
unsafe impl<T: Send> Send for Queue<T> {}

impl<T> Queue<T> {
    #[inline]
    fn slot(&self, index: usize) -> &UnsafeCell<MaybeUninit<T>> {
        &self.slots[index & (self.slots.len() - 1)]
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        // Both ends are gone, and each has published what it did.
        let tail = self.tail.0.tail.load(Ordering::Acquire);
        let mut head = self.head.0.load(Ordering::Acquire);
        while head != tail {
            // SAFETY: between head and tail every slot was filled and none was taken; nobody else is left.
            self.slot(head).with_mut(|value| unsafe { (*value).assume_init_drop() });
            head = head.wrapping_add(1);
        }
    }
}

/// A queue of `capacity` values, as its two ends.
pub fn queue<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(capacity > 0, "a queue has room");
    let slots = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let queue = Arc::new(Queue {
        head: Apart(AtomicUsize::new(0)),
        tail: Apart(ProducerEnd { tail: AtomicUsize::new(0), starved: AtomicBool::new(false) }),
        slots,
        capacity,
    });
    let producer = Producer { queue: queue.clone(), tail: 0, published: 0, head_seen: 0 };
    (producer, Consumer { queue, head: 0, released: 0, tail_seen: 0 })
}

/// The end that fills.
pub struct Producer<T> {
    queue: Arc<Queue<T>>,
    tail: usize,
    published: usize,
    head_seen: usize,
}

impl<T> Producer<T> {
    /// Puts a value in; it is seen after the next [`publish`](Self::publish). Where there is no room it comes back.
    #[inline]
    pub fn push(&mut self, value: T) -> Result<(), T> {
        if self.tail.wrapping_sub(self.head_seen) == self.queue.capacity && !self.has_room() {
            return Err(value);
        }
        // SAFETY: the slot is not between head and tail, so it is ours and holds nothing.
        self.queue.slot(self.tail).with_mut(|slot| unsafe {
            (*slot).write(value);
        });
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Lets the consumer see everything; `false`: it could already.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if self.published == self.tail {
            return false;
        }
        self.published = self.tail;
        self.queue.tail.0.tail.store(self.tail, Ordering::Release);
        true
    }

    /// Looks whether there is room now.
    pub fn has_room(&mut self) -> bool {
        self.head_seen = self.queue.head.0.load(Ordering::Acquire);
        self.tail.wrapping_sub(self.head_seen) < self.queue.capacity
    }

    /// Says that the producer waits for room. It must look again, behind a fence, before it sleeps.
    ///
    /// Release: whoever takes this must see that the producer is asleep, or it takes the call and does not wake.
    pub fn starve(&mut self) {
        self.queue.tail.0.starved.swap(true, Ordering::Release);
    }
}

impl<T> Drop for Producer<T> {
    fn drop(&mut self) {
        self.publish();
    }
}

/// The end that empties.
pub struct Consumer<T> {
    queue: Arc<Queue<T>>,
    head: usize,
    released: usize,
    tail_seen: usize,
}

impl<T> Consumer<T> {
    /// The most that can be in the queue.
    pub fn capacity(&self) -> usize {
        self.queue.capacity
    }

    /// Takes the oldest of the values that the last [`look`](Self::look) saw. Its room is the producer's after the
    /// next [`release`](Self::release).
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.head == self.tail_seen {
            return None;
        }
        // SAFETY: the slot lies between head and tail: it was filled, and `head` moves on so that it is read once.
        let value = self.queue.slot(self.head).with(|slot| unsafe { (*slot).assume_init_read() });
        self.head = self.head.wrapping_add(1);
        Some(value)
    }

    /// Looks what has been published; `false`: there is nothing to take.
    #[inline]
    pub fn look(&mut self) -> bool {
        self.tail_seen = self.queue.tail.0.tail.load(Ordering::Acquire);
        self.head != self.tail_seen
    }

    /// Gives the room of what was taken to the producer; `false`: it has it already.
    #[inline]
    pub fn release(&mut self) -> bool {
        if self.released == self.head {
            return false;
        }
        self.released = self.head;
        self.queue.head.0.store(self.head, Ordering::Release);
        true
    }

    /// Whether the producer waits for room; it is taken to have been told. Ask behind a fence.
    #[inline]
    pub fn take_starved(&mut self) -> bool {
        let starved = &self.queue.tail.0.starved;
        starved.load(Ordering::Relaxed) && starved.swap(false, Ordering::Acquire)
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.release();
    }
}
