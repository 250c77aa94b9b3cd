<?php
// Values of Millrace for a PHP page: written on the primary, read on a replica, and never read older than the visitor
// wrote. Two ways that do the same: over HTTP through NGINX (docs/nginx.md), and with phpredis.
//
// What a write returns is a token for it. The visitor keeps the last one (page.php: a cookie), and a read that is given it
// sees at least that write, on whatever server.

declare(strict_types=1);

interface Values
{
    /** Writes, and returns the token of the write. */
    public function write(string $key, string $value): string;

    /** Reads at least what the token names, or, where it is none, what there is; null: there is no such key. */
    public function read(string $key, ?string $token): ?string;
}

/** What a visitor's cookie says, if that is a token (docs/reads.md); he may send anything, line breaks and lists, too. */
function token(mixed $cookie): ?string
{
    return is_string($cookie) && preg_match('/^([0-9a-f]{16}:)?\d{1,19}$/D', $cookie) ? $cookie : null;
}

/**
 * What a token names is not on the primary: it was lost with a server, what was written with it may be gone, and the token
 * is of no more use.
 */
final class LostWrite extends RuntimeException
{
}

/** Through NGINX, which knows where to write, where to read, and whom to ask instead. */
final class ValuesOverHttp implements Values
{
    public function __construct(private string $url)
    {
    }

    public function write(string $key, string $value): string
    {
        [$status, $fields, $body] = $this->ask('PUT', $key, ['Content-Type: application/octet-stream'], $value);
        if ($status !== 201 && $status !== 204) {
            throw new RuntimeException("not written: $status $body");
        }
        return $fields['x-millrace-lsn'] ?? '';
    }

    public function read(string $key, ?string $token): ?string
    {
        $token = token($token);
        [$status, , $body] = $this->ask('GET', $key, $token === null ? [] : ["X-Millrace-LSN: $token"]);
        return match (true) {
            $status === 200 => $body,
            $status === 404 => null,
            // NGINX has asked the primary, too.
            $status === 409 => throw new LostWrite($body),
            default => throw new RuntimeException("not read: $status $body"),
        };
    }

    private function ask(string $method, string $key, array $fields, string $body = ''): array
    {
        $http = ['method' => $method, 'header' => $fields, 'content' => $body, 'ignore_errors' => true, 'timeout' => 10];
        $context = stream_context_create(['http' => $http]);
        $answer = @file_get_contents("$this->url/v1/keys/" . rawurlencode($key), false, $context);
        if ($answer === false) {
            throw new RuntimeException("nobody answers at $this->url: is NGINX running?");
        }
        $answered = [];
        foreach (array_slice($http_response_header, 1) as $line) {
            [$name, $value] = explode(':', $line, 2) + [1 => ''];
            $answered[strtolower($name)] = trim($value);
        }
        return [(int) substr($http_response_header[0], 9, 3), $answered, $answer];
    }
}

/** With phpredis: one connection to write, one to read. */
final class ValuesOverRedis implements Values
{
    /** Milliseconds that a replica may take to have a write; then the primary is asked. */
    private const PATIENCE_MS = 50;

    public function __construct(private Redis $primary, private Redis $replica)
    {
    }

    public function write(string $key, string $value): string
    {
        $this->primary->set($key, $value);
        return (string) $this->primary->rawCommand('CLIENT', 'LSN');
    }

    public function read(string $key, ?string $token): ?string
    {
        $token = token($token);
        $from = $this->replica;
        if ($token !== null && self::lacks($from, $token, self::PATIENCE_MS) !== null) {
            $from = $this->primary;
            $why = self::lacks($from, $token, 1);
            if ($why !== null) {
                throw new LostWrite($why);
            }
        }
        $value = $from->get($key);
        return $value === false ? null : $value;
    }

    /** Null if the server has what the token names; else why not. */
    private static function lacks(Redis $server, string $token, int $patience): ?string
    {
        $server->clearLastError();
        try {
            $has = $server->rawCommand('WAITLSN', $token, $patience) === true;
            return $has ? null : (string) $server->getLastError();
        } catch (RedisException $answer) {
            // phpredis throws errors whose first word it does not know, and where there is no connection.
            if (!preg_match('/^(BEHIND|LOST|LOADING|STALE|UNBLOCKED)\b/', $answer->getMessage())) {
                throw $answer;
            }
            return $answer->getMessage();
        }
    }
}

/** As the environment says: MILLRACE_URL, or PRIMARY and REPLICA1 as HOST:PORT. */
function values(string $way): Values
{
    if ($way === 'http') {
        return new ValuesOverHttp(getenv('MILLRACE_URL') ?: 'http://127.0.0.1:8088');
    }
    $connect = function (string $name, string $default): Redis {
        [$host, $port] = explode(':', getenv($name) ?: $default);
        $redis = new Redis();
        $redis->connect($host, (int) $port, 1.0);
        return $redis;
    };
    return new ValuesOverRedis($connect('PRIMARY', '127.0.0.1:6379'), $connect('REPLICA1', '127.0.0.1:6381'));
}
