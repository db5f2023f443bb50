//! What looking through WAL for `walden log --drops` costs, against `pg_waldump --stats` of the same segments in the same run, in turns, on one core,
//! with the files in the page cache. Processor time, the best of several turns; so what else runs on the machine matters little.
//!
//! Twice: of segments in memory, as they come out of sealed objects, against all that `pg_waldump` does; and as a process of its own that reads the
//! same files. The WAL is what `scripts/sample-wal` made.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench prints, and fails by panicking"
)]

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pitr::log::scan_for_drops;
use wal_format::{DecoderConfig, Lsn, PageHeader, SegmentSize, WalDecoder};

/// Turns.
const TURNS: usize = 24;
/// A process of this program with this argument reads the files that follow, for the log.
const AS_PROCESS: &str = "--read-for-log";
/// Bytes that such a process reads at a time.
const READ_BYTES: usize = 256 << 10;

const CONFIG: DecoderConfig = DecoderConfig {
    segment_size: SegmentSize::DEFAULT,
    system_identifier: None,
    major: None,
};

fn main() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some(AS_PROCESS) {
        let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
        return read_files(&files);
    }
    let cache =
        std::env::var_os("WALDEN_CACHE_DIR").map_or_else(|| PathBuf::from(".cache"), PathBuf::from);
    let waldump = cache.join("pg/18/bin/pg_waldump");
    let mut segments: Vec<PathBuf> = std::fs::read_dir(cache.join("sample-wal"))
        .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
        .unwrap_or_default();
    segments.sort();
    if segments.len() < 3 || !waldump.exists() {
        println!(
            "NOT RUN: no pg_waldump or no WAL in {} (scripts/sample-wal)",
            cache.display()
        );
        return;
    }
    let bytes: Vec<Vec<u8>> = segments
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let start = start_of(&bytes[0]);
    let mut answer = (0, 0);
    let log = |answer: &mut (u64, usize)| {
        *answer = scan_for_drops(CONFIG, start, |push| {
            for segment in &bytes {
                push(black_box(segment));
            }
        })
        .unwrap();
    };
    let scan = || {
        let mut decoder = WalDecoder::new(CONFIG, start).unwrap();
        for segment in &bytes {
            decoder.push(black_box(segment), |step| {
                black_box(&step);
            });
        }
    };
    let mut stats = Command::new(&waldump);
    stats
        .arg("--stats")
        .args([&segments[0], &segments[segments.len() - 1]]);
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.arg(AS_PROCESS).args(&segments);

    let mut best = [f64::INFINITY; 4];
    let mut sum = [0.0; 4];
    // Of processes: in user mode, without what the kernel does to read files.
    let mut user = [0.0; 4];
    for _ in 0..TURNS {
        let runs = [
            own(scan),
            own(|| log(&mut answer)),
            of_child(&mut stats),
            of_child(&mut process),
        ];
        for (number, (of_user, of_kernel)) in runs.into_iter().enumerate() {
            best[number] = f64::min(best[number], of_user + of_kernel);
            sum[number] += of_user + of_kernel;
            user[number] += of_user;
        }
    }
    let size = bytes.iter().map(Vec::len).sum::<usize>() as f64 / 1e9;
    let (commits, wanted) = answer;
    println!(
        "{} segments of the sample, {commits} commits, {wanted} of them looked at closely; GB of WAL per second of processor time",
        segments.len()
    );
    let [scan, log, stats, process] = best.map(|seconds| size / seconds);
    println!(
        "pg_waldump --stats              {stats:6.2} GB/s   ({:.0} % of its time in user mode)",
        100.0 * user[2] / sum[2]
    );
    println!("scan of records alone           {scan:6.2} GB/s");
    println!(
        "for the log, segments in memory {log:6.2} GB/s   {:.2} of pg_waldump (at least 3, aim 4), {:.2} of the scan alone",
        log / stats,
        log / scan
    );
    println!(
        "for the log, reading the files  {process:6.2} GB/s   {:.2} of pg_waldump; in user mode alone {:.2} (means)",
        process / stats,
        user[2] / user[3]
    );
}

/// The process that reads files for the log.
fn read_files(files: &[PathBuf]) {
    let mut first = vec![0; 8192];
    File::open(&files[0])
        .and_then(|mut file| file.read_exact(&mut first))
        .unwrap();
    let start = start_of(&first);
    let mut piece = vec![0; READ_BYTES];
    let answer = scan_for_drops(CONFIG, start, |push| {
        for path in files {
            let mut file = File::open(path).unwrap();
            loop {
                let count = file.read(&mut piece).unwrap();
                if count == 0 {
                    break;
                }
                push(&piece[..count]);
            }
        }
    });
    println!("{:?}", answer.unwrap());
}

fn start_of(segment: &[u8]) -> Lsn {
    PageHeader::parse_first(segment).unwrap().0.address
}

/// User and kernel seconds of this process that a run takes.
fn own(run: impl FnOnce()) -> (f64, f64) {
    let before = usage(libc::RUSAGE_SELF);
    run();
    let after = usage(libc::RUSAGE_SELF);
    (after.0 - before.0, after.1 - before.1)
}

/// User and kernel seconds of a process, from its start to its end.
fn of_child(command: &mut Command) -> (f64, f64) {
    let before = usage(libc::RUSAGE_CHILDREN);
    let output = command.stderr(Stdio::null()).output().unwrap();
    // `pg_waldump` ends with an error where WAL ends, if that is not a segment's end.
    assert!(!output.stdout.is_empty(), "nothing was read");
    let after = usage(libc::RUSAGE_CHILDREN);
    (after.0 - before.0, after.1 - before.1)
}

/// User and kernel seconds of this process, or of its children that ended.
fn usage(who: libc::c_int) -> (f64, f64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    #[expect(
        unsafe_code,
        reason = "no safe function tells the time that children took"
    )]
    // SAFETY: the call fills the structure that it is given, which is valid when all of it is zero.
    let usage = unsafe {
        assert_eq!(libc::getrusage(who, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    (seconds(usage.ru_utime), seconds(usage.ru_stime))
}
