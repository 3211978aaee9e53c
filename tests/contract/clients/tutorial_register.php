<?php
// The first program of CallFire's 2012 tutorial, as the contract describes it: register a URL for inbound texts.
[, $wsdl, $login, $password, $endpoint] = $argv;
$client = new SoapClient($wsdl, array(
    'soap_version' => 'SOAP_1_2',
    'login' => $login,
    'password' => $password,
    'cache_wsdl' => WSDL_CACHE_NONE,
));
$request = new stdclass();
$request->Subscription = new stdclass();
$request->Subscription->Enabled = true;
$request->Subscription->Endpoint = $endpoint;
$request->Subscription->NotificationFormat = 'XML';
$request->Subscription->TriggerEvent = 'INBOUND_TEXT_FINISHED';
$request->Subscription->SubscriptionFilter = new stdclass();
$id = $client->createSubscription($request);
echo json_encode($id), "\n";
