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

    /** Reads at least what the token names; null: there is no such key. */
    public function read(string $key, ?string $token): ?string;
}

/** What a token names was lost with a server: what was written with it may be gone, and the token is of no more use. */
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
        [$status, , $body] = $this->ask('GET', $key, $token ? ["X-Millrace-LSN: $token"] : []);
        return match (true) {
            $status === 200 => $body,
            $status === 404 => null,
            $status === 409 && str_contains($body, 'LOST') => throw new LostWrite($body),
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
        $from = $this->replica;
        if ($token && $from->rawCommand('WAITLSN', $token, self::PATIENCE_MS) !== true) {
            // phpredis returns false for an error, and keeps its text.
            $from = $this->primary;
            $from->clearLastError();
            if ($from->rawCommand('WAITLSN', $token, 1) !== true) {
                throw new LostWrite((string) $from->getLastError());
            }
        }
        $value = $from->get($key);
        return $value === false ? null : $value;
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
