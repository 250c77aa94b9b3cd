<?php
// Values of Millrace, kept in files: of use while follower.php runs, which removes what has changed.
//
// A value that is read while its key changes must not be kept. So a reader first makes a file that says that it reads
// (FILE.reading.…), and makes it the value's file when it has the value. The follower removes both kinds: what is
// renamed no more has changed meanwhile.

declare(strict_types=1);

const READING = '.reading.';

function millrace_url(): string
{
    return getenv('MILLRACE_URL') ?: 'http://127.0.0.1:8080';
}

function cache_folder(): string
{
    return getenv('CACHE_FOLDER') ?: '/var/cache/millrace-page';
}

function cache_file(string $key): string
{
    return cache_folder() . '/' . hash('sha256', $key);
}

/** Whether somebody holds the lock that follower.php holds: it is free as soon as that ends, however it ends. */
function is_followed(): bool
{
    $lock = @fopen(cache_folder() . '/.followed', 'r');
    return $lock !== false && !flock($lock, LOCK_SH | LOCK_NB);
}

/** The value as Millrace has it; null: there is none. */
function value_of(string $key): ?string
{
    $context = stream_context_create(['http' => ['ignore_errors' => true, 'timeout' => 5]]);
    $value = file_get_contents(millrace_url() . '/v1/keys/' . rawurlencode($key), false, $context);
    $status = (int) substr($http_response_header[0] ?? '', 9, 3);
    if ($value === false || ($status !== 200 && $status !== 404)) {
        throw new RuntimeException("Millrace at " . millrace_url() . " answered $status, not 200 or 404: is it running?");
    }
    return $status === 200 ? $value : null;
}

/** The same, from a file where one is true. */
function cached_value_of(string $key): ?string
{
    if (!is_followed()) {
        return value_of($key);
    }
    $file = cache_file($key);
    $value = @file_get_contents($file);
    if ($value !== false) {
        return $value;
    }
    $reading = $file . READING . bin2hex(random_bytes(8));
    $handle = fopen($reading, 'x');
    $value = value_of($key);
    if ($value === null || fwrite($handle, $value) !== strlen($value) || !fclose($handle) || !@rename($reading, $file)) {
        @unlink($reading);
    }
    return $value;
}
