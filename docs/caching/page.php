<?php
// A page with a value of Millrace: /page.php?key=greeting. It is made from a file while nothing has changed (cache.php),
// and in a browser it follows the invalidations itself.

declare(strict_types=1);

require __DIR__ . '/cache.php';

$key = (string) ($_GET['key'] ?? 'greeting');
$value = cached_value_of($key);
http_response_code($value === null ? 404 : 200);
header('Cache-Control: no-store');
?>
<!DOCTYPE html>
<meta charset="utf-8">
<title><?= htmlspecialchars($key) ?></title>
<p id="value"><?= htmlspecialchars($value ?? 'There is no such key.') ?></p>
<script>
const key = <?= json_encode(rawurlencode($key), JSON_HEX_TAG | JSON_INVALID_UTF8_SUBSTITUTE) ?>;
// The browser comes back by itself, and says with Last-Event-ID where it was.
const stream = new EventSource("/invalidations?prefix=" + key);
async function read() {
  const answer = await fetch("/values/" + key); // Conditional: the browser sends the entity tag it has.
  document.getElementById("value").textContent = answer.ok ? await answer.text() : "There is no such key.";
}
// `ready` and `flush`: nothing is known of what was before.
for (const kind of ["ready", "flush"]) stream.addEventListener(kind, read);
stream.addEventListener("invalidate", (event) => event.data === key && read());
</script>
