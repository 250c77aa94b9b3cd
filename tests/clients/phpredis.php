<?php
// phpredis, unchanged from Debian's package php-redis, against a running server. Where the server is comes from the
// environment, as run.sh sets it. One line per check, the number of checks last; the first failing check ends the
// program with exit code 1.

declare(strict_types=1);

$port = (int) getenv('MILLRACE_PORT');
$securePort = (int) getenv('MILLRACE_SECURE_PORT');
$password = getenv('MILLRACE_PASSWORD');
$socket = getenv('MILLRACE_SOCKET');
$checks = 0;

/** Straight to stdout: after an echo PHP would refuse to start a session. */
function say(string $line): void
{
    fwrite(STDOUT, "$line\n");
}

function check(string $name, mixed $seen, mixed $wanted = true): void
{
    global $checks;
    if ($seen !== $wanted) {
        say("  FAILED $name\n    seen:   " . substr(var_export($seen, true), 0, 2000));
        say('    wanted: ' . substr(var_export($wanted, true), 0, 2000));
        exit(1);
    }
    $checks++;
    say("  ok $name");
}

/** The message of the RedisException this throws, or what it returned if it threw nothing. */
function failure(callable $action): string
{
    try {
        return 'no exception, but ' . var_export($action(), true);
    } catch (RedisException $e) {
        return $e->getMessage();
    }
}

function everything(callable $connect): void
{
    $r = $connect();
    $r->flushAll();
    check('PING, ECHO', [$r->ping(), $r->echo('hi')], [true, 'hi']);
    check('SET, GET', [$r->set('php:s', 'hello'), $r->get('php:s')], [true, 'hello']);
    check('a missing key is false', $r->get('php:none'), false);
    check('SET NX on an existing key', $r->set('php:s', 'x', ['nx']), false);
    check('SET XX EX', [$r->set('php:s', 'y', ['xx', 'ex' => 100]), $r->ttl('php:s') > 98], [true, true]);
    check('SETNX, SETEX, GETSET', [$r->setnx('php:s', 'q'), $r->setex('php:e', 50, 'v'), $r->getSet('php:s', 'z')], [false, true, 'y']);
    check('INCR, DECRBY, INCRBYFLOAT', [$r->incr('php:n'), $r->decrBy('php:n', 3), $r->incrByFloat('php:n', 0.25)], [1, -2, -1.75]);
    check('MSET, MGET', [$r->mset(['php:a' => '1', 'php:b' => '2']), $r->mget(['php:a', 'php:none', 'php:b'])], [true, ['1', false, '2']]);
    check('APPEND, STRLEN, GETRANGE, SETRANGE', [$r->append('php:s', 'zz'), $r->strlen('php:s'), $r->getRange('php:s', 1, -1), $r->setRange('php:s', 4, '!')], [3, 3, 'zz', 5]);
    check('DEL, UNLINK, EXISTS', [$r->exists('php:a', 'php:b'), $r->del('php:a', 'php:none'), $r->unlink('php:b')], [2, 1, 1]);
    check('RENAME, TYPE', [$r->rename('php:n', 'php:m'), $r->type('php:m')], [true, Redis::REDIS_STRING]);
    check('an error is false and getLastError', [$r->incr('php:s'), str_contains((string) $r->getLastError(), 'not an integer')], [false, true]);
    $r->clearLastError();

    check('EXPIRE, PTTL, PERSIST', [$r->expire('php:m', 100), $r->pttl('php:m') > 98000, $r->persist('php:m'), $r->ttl('php:m')], [true, true, true, -1]);
    $at = time() + 1000;
    check('EXPIREAT', [$r->expireAt('php:m', $at), abs($r->ttl('php:m') - 1000) <= 1], [true, true]);
    $r->psetex('php:soon', 20, 'v');
    for ($end = microtime(true) + 5; $r->exists('php:soon') && microtime(true) < $end;);
    check('PSETEX runs out', $r->ttl('php:soon'), -2);

    $everyByte = implode('', array_map('chr', range(0, 255)));
    check('a binary key and value come back', [$r->set($everyByte, $everyByte), $r->get($everyByte)], [true, $everyByte]);
    $big = str_repeat(random_bytes(1 << 20), 10);
    check('a value of 10 MiB comes back', [$r->set('php:big', $big), $r->get('php:big') === $big], [true, true]);
    $r->del('php:big');

    // What a PHP shop leans on: objects through a serializer, and sessions with prefixes.
    $r->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_PHP);
    $r->setOption(Redis::OPT_PREFIX, 'shop:');
    $basket = ['items' => [1, 2.5, 'drei'], 'paid' => false];
    check('serializer and prefix', [$r->set('basket', $basket), $r->get('basket')], [true, $basket]);
    $r->setOption(Redis::OPT_SERIALIZER, Redis::SERIALIZER_NONE);
    $r->setOption(Redis::OPT_PREFIX, '');
    check('the prefix reached the server', $r->exists('shop:basket'), 1);

    $pipe = $r->multi(Redis::PIPELINE);
    for ($i = 0; $i < 5000; $i++) {
        $pipe->set("php:p:$i", (string) $i)->get("php:p:$i");
    }
    $replies = $pipe->exec();
    check('10,000 commands in one pipeline', [count($replies), $replies[9998], $replies[9999]], [10000, true, '4999']);
    check('MULTI/EXEC', $r->multi()->set('php:t', '1')->incr('php:t')->get('php:t')->exec(), [true, 2, '2']);
    check('DISCARD', [$r->multi()->set('php:t', '7')->discard(), $r->get('php:t')], [true, '2']);
    $rival = $connect();
    $r->watch('php:t');
    $rival->set('php:t', '100');
    check("WATCH notices another's write", [$r->multi()->set('php:t', '3')->exec(), $r->get('php:t')], [false, '100']);
    $r->watch('php:t');
    check('WATCH of an untouched key', $r->multi()->incr('php:t')->exec(), [101]);

    // subscribe() blocks, so another process publishes. This phpredis goes on reading after an UNSUBSCRIBE or an exception
    // in the callback; only the end of its connection ends it, and the server can bring that about.
    $heard = [];
    $subscriber = $connect();
    $subscriber->setOption(Redis::OPT_READ_TIMEOUT, 60);
    $subscriber->setOption(Redis::OPT_MAX_RETRIES, 0); // or it might connect anew, to hear nothing more
    $started = microtime(true);
    $child = pcntl_fork();
    if ($child === 0) {
        $publisher = $connect();
        for ($end = microtime(true) + 10; $publisher->publish('php:news', "one\0") === 0 && microtime(true) < $end; usleep(1000));
        $publisher->publish('php:news', 'two');
        $publisher->rawCommand('CLIENT', 'KILL', 'TYPE', 'pubsub');
        // The inherited connections belong to the parent: leave without running their destructors.
        posix_kill(posix_getpid(), SIGKILL);
    }
    $listen = function () use ($subscriber, &$heard) {
        $subscriber->subscribe(['php:news'], function (Redis $s, string $channel, string $message) use (&$heard) {
            $heard[] = [$channel, $message];
        });
    };
    $ended = failure($listen);
    check('CLIENT KILL TYPE pubsub ends subscribe()', preg_match('/read error|went away|lost/', $ended) . (microtime(true) - $started < 20), '11');
    pcntl_waitpid($child, $status);
    check('SUBSCRIBE, PUBLISH', $heard, [['php:news', "one\0"], ['php:news', 'two']]);
    for ($end = microtime(true) + 5; $r->pubsub('channels', 'php:*') !== [] && microtime(true) < $end;);
    check('PUBSUB', [$r->pubsub('channels', 'php:*'), $r->pubsub('numpat')], [[], 0]);

    $r->flushDB();
    $r->mset(array_combine(array_map(fn ($i) => "php:k:$i", range(1, 3000)), range(1, 3000)));
    $r->setOption(Redis::OPT_SCAN, (string) Redis::SCAN_RETRY);
    $seen = [];
    for ($cursor = null; ($keys = $r->scan($cursor, 'php:k:*', 100)) !== false;) {
        foreach ($keys as $key) {
            $seen[$key] = true;
        }
    }
    check('SCAN finds every key', [count($seen), $r->dbSize()], [3000, 3000]);

    check('INFO', [$r->info()['redis_mode'], isset($r->info('memory')['used_memory'])], ['standalone', true]);
    check('CONFIG GET', $r->config('GET', 'maxclients'), ['maxclients' => '10000']);
    check('CONFIG SET', $r->config('SET', 'slowlog-max-len', '100'), true);
    check('CLIENT SETNAME, GETNAME', [$r->client('setname', 'php-test'), $r->client('getname')], [true, 'php-test']);
    check('CLIENT LIST', in_array('php-test', array_column($r->client('list'), 'name'), true));
    check('TIME', abs((int) $r->time()[0] - time()) < 60);
    check('rawCommand', [$r->rawCommand('SET', 'php:raw', 'v', 'KEEPTTL'), $r->object('encoding', 'php:raw')], [true, 'embstr']);
    check('an unknown command', [$r->rawCommand('NOSUCH'), str_contains((string) $r->getLastError(), 'unknown command')], [false, true]);
    $r->clearLastError();

    $rival->set('php:r', 'still here');
    $id = $r->rawCommand('CLIENT', 'ID');
    check('CLIENT KILL ID', $rival->rawCommand('CLIENT', 'KILL', 'ID', (string) $id), 1);
    check('the client reconnects by itself', [$r->get('php:r'), $r->rawCommand('CLIENT', 'ID') !== $id], ['still here', true]);
    check('close', $r->close());
}

function connected(bool $persistent, string $host, int $port): Redis
{
    $r = new Redis();
    $persistent ? $r->pconnect($host, $port) : $r->connect($host, $port);
    return $r;
}

say("defaults");
everything(fn () => connected(false, '127.0.0.1', $port));
say("Unix socket");
everything(fn () => connected(false, $socket, 0));

say("passwords, sessions");
$stranger = connected(false, '127.0.0.1', $securePort);
check('no password is refused', str_contains(failure(fn () => $stranger->get('x')), 'NOAUTH'));
check('a wrong password is refused', str_contains(failure(fn () => $stranger->auth('wrong')), 'WRONGPASS'));
check('the password', [$stranger->auth($password), $stranger->set('php:auth', '1')], [true, true]);
$named = connected(false, '127.0.0.1', $securePort);
check('user default and the password', [$named->auth(['default', $password]), $named->get('php:auth')], [true, '1']);
$persistent = connected(true, '127.0.0.1', $port);
check('pconnect', $persistent->ping());

ini_set('session.save_handler', 'redis');
ini_set('session.save_path', "tcp://127.0.0.1:$port");
ini_set('session.use_cookies', '0');
ini_set('session.cache_limiter', '');
session_id('millracetest');
$started = session_start();
$_SESSION['user'] = ['name' => 'Zoë', 'visits' => 3];
session_write_close();
$_SESSION = [];
session_start();
$restored = $_SESSION;
session_destroy();
check('PHP sessions', [$started, $restored], [true, ['user' => ['name' => 'Zoë', 'visits' => 3]]]);
say("$checks checks passed");
