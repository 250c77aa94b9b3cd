//! One io_uring: set-up, the only `io_uring_enter` of the project, submission and completion.
//!
//! The crate `io-uring` knows the memory layout and the opcodes; entering is ours, because three of its
//! conveniences do the wrong thing here: `submit_and_wait` forgets the registered ring descriptor, asks for
//! GETEVENTS only if it already sees work (with DEFER_TASKRUN it would never see any), and completions count
//! as unread for the kernel until `sync` publishes the head.
//!
//! Entries are pushed by this module's neighbours only, which keep every buffer an entry points to alive and
//! unmoved until its completion: see `uring.rs`.

use io_uring::{CompletionQueue, EnterFlags, IoUring, SubmissionQueue, Submitter, cqueue, squeue, types};
use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

/// What the ring is made with. Every field is a run-time switch, so that a sweep can tell what it is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOptions {
    /// Submission entries. Small on purpose: 256 × 64 B stay in the first-level cache.
    pub submission_entries: u32,
    /// Completion entries. Large on purpose: overflowing ends multishot operations.
    pub completion_entries: u32,
    /// IORING_SETUP_SINGLE_ISSUER: only the creating thread enters (Linux 6.0).
    pub single_issuer: bool,
    /// IORING_SETUP_DEFER_TASKRUN: completions are made when we enter, not when an interrupt likes (Linux 6.1).
    /// Needs `single_issuer`. Off: COOP_TASKRUN.
    pub defer_taskrun: bool,
    /// IORING_SETUP_NO_SQARRAY: one indirection less per entry (Linux 6.6).
    pub no_sqarray: bool,
    /// Enter through a registered descriptor: no file look-up per system call (Linux 5.18).
    pub registered_ring: bool,
}

impl Default for RingOptions {
    fn default() -> Self {
        RingOptions {
            submission_entries: 256,
            completion_entries: 16384,
            single_issuer: true,
            defer_taskrun: true,
            no_sqarray: true,
            registered_ring: true,
        }
    }
}

/// A completion, copied out of the shared queue.
#[derive(Clone, Copy, Debug)]
pub struct Completion {
    /// What the submission carried.
    pub user_data: u64,
    /// The operation's return value; negative: an errno.
    pub result: i32,
    /// IORING_CQE_F_*.
    pub flags: u32,
}

impl Completion {
    /// More completions of the same multishot operation follow.
    #[inline]
    pub fn more(&self) -> bool {
        cqueue::more(self.flags)
    }
    /// The provided buffer the kernel chose.
    #[inline]
    pub fn buffer(&self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// The ring and its three parts. The parts borrow the boxed ring for as long as both live in here.
pub struct Ring {
    submitter: ManuallyDrop<Submitter<'static>>,
    submission: ManuallyDrop<SubmissionQueue<'static>>,
    completion: ManuallyDrop<CompletionQueue<'static>>,
    ring: *mut IoUring,
    /// System calls made so far.
    pub enters: u64,
}

impl Ring {
    /// Sets a ring up on the calling thread, which must be the one that enters (SINGLE_ISSUER).
    pub fn new(options: &RingOptions) -> io::Result<Ring> {
        let mut builder = IoUring::<squeue::Entry, cqueue::Entry>::builder();
        builder.setup_cqsize(options.completion_entries).setup_clamp().setup_submit_all();
        if options.no_sqarray {
            builder.setup_no_sqarray();
        }
        if options.single_issuer {
            builder.setup_single_issuer();
        }
        if options.single_issuer && options.defer_taskrun {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        } else {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        let ring: IoUring = builder.build(options.submission_entries)?;
        if !ring.params().is_feature_ext_arg() || !ring.params().is_feature_nodrop() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "io_uring lacks EXT_ARG or NODROP: Linux 6.1 or newer is needed; try --io epoll",
            ));
        }
        let raw = Box::into_raw(Box::new(ring));
        // SAFETY: `raw` came from Box::into_raw just now, so it is valid and unaliased. The three parts borrow
        // it; they are dropped before it is freed (see Drop), and nobody else gets at the pointer.
        let (mut submitter, submission, completion) = unsafe { &mut *raw }.split();
        if options.registered_ring {
            // The registration lives in this one Submitter, which is why it is kept.
            if let Err(error) = submitter.register_ring_fd() {
                drop((submitter, submission, completion));
                // SAFETY: as above, and the parts that borrowed it are gone.
                drop(unsafe { Box::from_raw(raw) });
                return Err(error);
            }
        }
        Ok(Ring {
            submitter: ManuallyDrop::new(submitter),
            submission: ManuallyDrop::new(submission),
            completion: ManuallyDrop::new(completion),
            ring: raw,
            enters: 0,
        })
    }

    /// For registrations (buffers, files).
    pub fn submitter(&self) -> &Submitter<'static> {
        &self.submitter
    }

    /// Queues one entry; where the queue is full, hands the full queue to the kernel first.
    ///
    /// # Safety
    /// Everything the entry points to must stay valid and unmoved until its last completion was taken.
    #[inline]
    pub unsafe fn push(&mut self, entry: squeue::Entry) -> io::Result<()> {
        // SAFETY: the caller's promise is exactly what `push` asks for.
        if unsafe { self.submission.push(&entry) }.is_ok() {
            return Ok(());
        }
        self.enter(0, None)?;
        // SAFETY: as above. After an enter with SUBMIT_ALL the queue is empty.
        unsafe { self.submission.push(&entry) }
            .map_err(|_| io::Error::other("the submission queue is full after it was submitted"))
    }

    /// Hands the submission queue over and waits for `want` completions, at most `timeout`.
    ///
    /// Every enter carries GETEVENTS: with DEFER_TASKRUN it is what makes completions appear. EINTR, ETIME and
    /// a backed-up completion queue (EBUSY, EAGAIN) are ordinary and end the wait; what is there is there.
    #[inline]
    pub fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<()> {
        self.enter_with(want, timeout, 0)
    }

    /// `enter`, and let up to `want` completions gather for `min_wait_us` before the first wakes us (Linux 6.12).
    #[inline]
    pub fn enter_with(&mut self, want: u32, timeout: Option<Duration>, min_wait_us: u32) -> io::Result<()> {
        self.submission.sync();
        self.completion.sync();
        let to_submit = self.submission.len() as u32;
        let want = if self.completion.is_empty() { want } else { 0 };
        let flags = EnterFlags::GETEVENTS | EnterFlags::NO_IOWAIT;
        self.enters += 1;
        let entered = if want > 0 && (timeout.is_some() || min_wait_us > 0) {
            let span;
            let mut arguments = types::SubmitArgs::new();
            if let Some(timeout) = timeout {
                span = types::Timespec::from(timeout);
                arguments = arguments.timespec(&span);
            }
            if min_wait_us > 0 {
                arguments = arguments.min_wait_usec(min_wait_us);
            }
            // SAFETY: `arguments` and `span` outlive the call; EXT_ARG says that the pointer is a getevents_arg.
            unsafe {
                self.submitter.enter(to_submit, want, (flags | EnterFlags::EXT_ARG).bits(), Some(&arguments))
            }
        } else {
            // SAFETY: no argument is passed.
            unsafe { self.submitter.enter::<libc::sigset_t>(to_submit, want, flags.bits(), None) }
        };
        self.submission.sync();
        self.completion.sync();
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN | libc::EBADR) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// The next completion the last `enter` brought.
    #[inline]
    pub fn next_completion(&mut self) -> Option<Completion> {
        let entry = self.completion.next()?;
        Some(Completion { user_data: entry.user_data(), result: entry.result(), flags: entry.flags() })
    }

    /// Cancels everything in flight and lets the cancelled operations drop their files.
    ///
    /// Without the enter afterwards a cancelled accept keeps its listening socket until a kernel worker tears
    /// the ring down, some time after the process is gone, and an immediate restart finds the port taken.
    pub fn cancel_all(&mut self) {
        // What is queued goes first: submitted after the cancellation it would outlive the memory it points to.
        let _ = self.enter(0, None);
        let _ = self.submitter.register_sync_cancel(None, types::CancelBuilder::any());
        let _ = self.enter(0, None);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.cancel_all();
        // A thread has sixteen places for registered rings; one not given back keeps its ring alive besides.
        let _ = self.submitter.unregister_ring_fd();
        // SAFETY: each part is dropped exactly once, here, and before the ring they borrow.
        unsafe {
            ManuallyDrop::drop(&mut self.completion);
            ManuallyDrop::drop(&mut self.submission);
            ManuallyDrop::drop(&mut self.submitter);
            drop(Box::from_raw(self.ring));
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Ring").field("enters", &self.enters).finish_non_exhaustive()
    }
}
