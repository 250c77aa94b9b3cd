<?php
// Keeps the files of cache.php true: follows Millrace's invalidations, and removes what has changed.
//
//     MILLRACE_URL=http://127.0.0.1:8080 CACHE_FOLDER=/var/cache/millrace-page php follower.php [PREFIX]
//
// One for each folder, as long as pages are served; a service manager starts it again if it ends. While it has no stream
// pages ask Millrace. When it comes back in time it is told what it missed (Last-Event-ID), and keeps the rest.

declare(strict_types=1);

require __DIR__ . '/cache.php';

/** Files of readers first: what one of them makes its value's file meanwhile is found behind them. */
function remove(string $pattern): void
{
    array_map(fn ($file) => @unlink($file), glob($pattern . READING . '*'));
    array_map(fn ($file) => @unlink($file), glob($pattern));
}

$prefix = $argv[1] ?? '';
$folder = cache_folder();
if (!is_dir($folder) || ($lock = fopen("$folder/.followed", 'c')) === false) {
    fwrite(STDERR, "follower: $folder must be a folder that this program may write to\n");
    exit(1);
}
$url = millrace_url() . '/v1/invalidations?prefix=' . rawurlencode($prefix);
$lastId = null;
while (true) {
    // A sign of life comes every 15 seconds: a stream that is silent for longer is none any more.
    $http = ['timeout' => 40, 'header' => $lastId === null ? '' : "Last-Event-ID: $lastId"];
    $stream = @fopen($url, 'r', false, stream_context_create(['http' => $http]));
    $isFollowing = false;
    while ($stream !== false && ($line = fgets($stream)) !== false) {
        [$field, $text] = explode(': ', rtrim($line), 2) + ['', ''];
        if ($field === 'event') {
            $event = $text;
        } elseif ($field === 'id') {
            $id = $text;
        } elseif ($field === 'data') {
            match ($event) {
                'invalidate' => remove(cache_file(rawurldecode($text))),
                'ready', 'flush' => remove("$folder/*"),
                'resumed' => null,
            };
            $lastId = $id;
        } elseif ($field === '' && $lastId !== null && !$isFollowing && stream_get_meta_data($stream)['unread_bytes'] === 0) {
            // Behind `resumed` all that was missed comes at once: it is removed before pages take values again.
            $isFollowing = flock($lock, LOCK_EX);
            echo "following $url\n";
        }
    }
    flock($lock, LOCK_UN);
    echo "no stream from $url: trying again\n";
    sleep(1);
}
