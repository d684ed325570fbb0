//! The C interface of libchdb, made safe.
//!
//! A connection is a session: its current database and its settings are its own, and queries of several connections
//! run side by side. It costs 0.3 ms to open, so every request gets a new one; that also keeps the output of a query
//! that failed halfway from showing up in the answer to the next.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use libloading::{Library, Symbol};

type RawConnection = *mut c_void;
type RawResult = *mut c_void;

/// The functions that are used. Signatures are those of `chdb.h` of the version that `fetch.sh` names.
struct Functions {
    connect: unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut RawConnection,
    close: unsafe extern "C" fn(*mut RawConnection),
    query: unsafe extern "C" fn(
        RawConnection,
        *const c_char,
        usize,
        *const c_char,
        usize,
        *const *const c_char,
        *const usize,
        *const *const c_char,
        *const usize,
        usize,
    ) -> RawResult,
    destroy: unsafe extern "C" fn(RawResult),
    buffer: unsafe extern "C" fn(RawResult) -> *const u8,
    length: unsafe extern "C" fn(RawResult) -> usize,
    error: unsafe extern "C" fn(RawResult) -> *const c_char,
    rows_read: unsafe extern "C" fn(RawResult) -> u64,
    rows_written: unsafe extern "C" fn(RawResult) -> u64,
    /// Keeps the code of the functions in memory.
    _library: Library,
}

/// The engine of this process. It runs as long as this value or a connection exists.
#[derive(Clone)]
pub(crate) struct Engine(Arc<Inner>);

struct Inner {
    functions: Functions,
    path: CString,
    /// Held open: closing the last connection would stop the engine.
    first: *mut RawConnection,
}

// SAFETY: the library documents its functions as thread-safe, and `first` is only closed, once, by `Drop`.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

/// Why the engine or a query failed, in the words of the engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exception(pub(crate) String);

impl std::fmt::Display for Exception {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for Exception {}

impl Engine {
    /// Loads the library and opens the data in `path`.
    pub(crate) fn start(library: &Path, path: &Path) -> Result<Self, Exception> {
        let failed = |error: libloading::Error| Exception(format!("loading {}: {error}", library.display()));
        let functions = load(library).map_err(failed)?;
        let argument = [b"--path=", path.as_os_str().as_bytes()].concat();
        let path = CString::new(argument).map_err(|_| Exception("the path holds a zero byte".to_owned()))?;
        let first = open(&functions, &path)?;
        Ok(Self(Arc::new(Inner { functions, path, first })))
    }

    /// Opens a session.
    pub(crate) fn connect(&self) -> Result<Connection, Exception> {
        let handle = open(&self.0.functions, &self.0.path)?;
        Ok(Connection { engine: self.clone(), handle, not_sync: PhantomData })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: opened in `start` and closed only here.
        unsafe { (self.functions.close)(self.first) }
    }
}

fn load(path: &Path) -> Result<Functions, libloading::Error> {
    // SAFETY: loading runs the library's initialisers; it is the one that fetch.sh took from its package.
    let library = unsafe { Library::new(path) }?;
    // SAFETY: the types of the fields are those of the library's header.
    unsafe {
        let keep_signals: Symbol<'_, unsafe extern "C" fn(c_int)> = library.get(b"chdb_set_signal_handlers_enabled")?;
        // Its own handlers would hold a crashed process for minutes before letting it die.
        keep_signals(0);
        Ok(Functions {
            connect: *library.get(b"chdb_connect")?,
            close: *library.get(b"chdb_close_conn")?,
            query: *library.get(b"chdb_query_with_params_n")?,
            destroy: *library.get(b"chdb_destroy_query_result")?,
            buffer: *library.get(b"chdb_result_buffer")?,
            length: *library.get(b"chdb_result_length")?,
            error: *library.get(b"chdb_result_error")?,
            rows_read: *library.get(b"chdb_result_storage_rows_read")?,
            rows_written: *library.get(b"chdb_result_rows_written")?,
            _library: library,
        })
    }
}

fn open(functions: &Functions, path: &CString) -> Result<*mut RawConnection, Exception> {
    let mut arguments = [c"clickhouse".as_ptr().cast_mut(), path.as_ptr().cast_mut()];
    // SAFETY: two arguments, each ending with a zero byte; the library copies them.
    let handle = unsafe { (functions.connect)(2, arguments.as_mut_ptr()) };
    if handle.is_null() {
        return Err(Exception(format!("Code: 210. DB::Exception: the engine cannot open {path:?} (NETWORK_ERROR)")));
    }
    Ok(handle)
}

/// A session: current database, settings, one query at a time.
pub(crate) struct Connection {
    engine: Engine,
    handle: *mut RawConnection,
    /// One query at a time.
    not_sync: PhantomData<std::cell::Cell<()>>,
}

impl Connection {
    /// Runs a query to its end. `format` is used when the query names none; `parameters` fill `{name:Type}`.
    pub(crate) fn query(&self, sql: &[u8], format: &str, parameters: &[(String, String)]) -> Result<Output, Exception> {
        let names: Vec<_> = parameters.iter().map(|(name, _)| name.as_ptr().cast::<c_char>()).collect();
        let name_lengths: Vec<_> = parameters.iter().map(|(name, _)| name.len()).collect();
        let values: Vec<_> = parameters.iter().map(|(_, value)| value.as_ptr().cast::<c_char>()).collect();
        let value_lengths: Vec<_> = parameters.iter().map(|(_, value)| value.len()).collect();
        // SAFETY: every pointer comes with its length and lives until the call returns; the handle is open.
        let raw = unsafe {
            (self.engine.0.functions.query)(
                *self.handle,
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                names.as_ptr(),
                name_lengths.as_ptr(),
                values.as_ptr(),
                value_lengths.as_ptr(),
                parameters.len(),
            )
        };
        if raw.is_null() {
            return Err(Exception("Code: 1000. DB::Exception: the engine gave no result (POCO_EXCEPTION)".to_owned()));
        }
        let output = Output { engine: self.engine.clone(), raw };
        output.exception().map_or(Ok(output), Err)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: opened by `open` and closed only here.
        unsafe { (self.engine.0.functions.close)(self.handle) }
    }
}

/// What a query that succeeded printed, in the engine's own memory.
pub(crate) struct Output {
    engine: Engine,
    raw: RawResult,
}

// SAFETY: a result is plain memory that belongs to nobody else.
unsafe impl Send for Output {}
// SAFETY: it is never changed after the query.
unsafe impl Sync for Output {}

impl Output {
    fn exception(&self) -> Option<Exception> {
        // SAFETY: the result is alive; the message ends with a zero byte and is copied.
        unsafe {
            let message = (self.engine.0.functions.error)(self.raw);
            (!message.is_null()).then(|| Exception(CStr::from_ptr(message).to_string_lossy().into_owned()))
        }
    }

    /// Rows read from tables.
    pub(crate) fn rows_read(&self) -> u64 {
        // SAFETY: the result is alive and no error, for which the figure would be noise.
        unsafe { (self.engine.0.functions.rows_read)(self.raw) }
    }

    /// Rows written to tables.
    pub(crate) fn rows_written(&self) -> u64 {
        // SAFETY: as above.
        unsafe { (self.engine.0.functions.rows_written)(self.raw) }
    }
}

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the result is alive as long as `self`, and its buffer has this many bytes.
        unsafe {
            let length = (self.engine.0.functions.length)(self.raw);
            let buffer = (self.engine.0.functions.buffer)(self.raw);
            if length == 0 || buffer.is_null() { &[] } else { std::slice::from_raw_parts(buffer, length) }
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // SAFETY: destroyed only here.
        unsafe { (self.engine.0.functions.destroy)(self.raw) }
    }
}
