<?php
// A page with a note that anybody may change: /page.php, or /page.php?way=redis. Whoever changes it sees the change, and
// not the note from before, although it is read from a replica: the visitor's cookie names the write.

declare(strict_types=1);

require __DIR__ . '/millrace.php';

const COOKIE = 'last_write';
const KEY = 'page:note';

$way = ($_GET['way'] ?? '') === 'redis' ? 'redis' : 'http';
$values = values($way);

if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    $token = $values->write(KEY, (string) ($_POST['note'] ?? ''));
    // As long as replicas may be behind; a later token covers all earlier ones.
    setcookie(COOKIE, $token, ['expires' => time() + 3600, 'httponly' => true, 'samesite' => 'Lax']);
    header('Location: ' . strtok($_SERVER['REQUEST_URI'], '?') . "?way=$way", true, 303);
    exit;
}

$token = token($_COOKIE[COOKIE] ?? null);
$warning = '';
try {
    $note = $values->read(KEY, $token);
} catch (LostWrite $lost) {
    $warning = 'What you wrote was lost with a server.';
    setcookie(COOKIE, '', 1);
    $note = $values->read(KEY, null);
}
header('Cache-Control: no-store');
?>
<!DOCTYPE html>
<meta charset="utf-8">
<title>A note</title>
<p id="warning"><?= htmlspecialchars($warning) ?></p>
<p id="note"><?= htmlspecialchars($note ?? 'Nobody has written anything yet.') ?></p>
<form method="post"><input name="note" autofocus><button>Write</button></form>
