<?php
// The second program of the tutorial: turn the posted XML into an email. Instead of mail() it prints what it would send.
$notification = simplexml_load_string(file_get_contents('php://stdin'));
$text = $notification->Text;
$subject = "{$text->ToNumber} received a new SMS from {$text->FromNumber}";
$body = "From: {$text->FromNumber}\n  To: {$text->ToNumber}\nTime: {$text->Created}\nText: {$text->Message}\n";
echo json_encode(array($subject, $body)), "\n";
