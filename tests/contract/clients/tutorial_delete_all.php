<?php
// The third program of the tutorial: delete every subscription - one comes as an object, several as an array, none
// as a missing property, which the program turns into an id of null.
[, $wsdl, $login, $password] = $argv;
$client = new SoapClient($wsdl, array(
    'soap_version' => 'SOAP_1_2',
    'login' => $login,
    'password' => $password,
    'cache_wsdl' => WSDL_CACHE_NONE,
    'trace' => true,
));
$result = $client->querySubscriptions(new stdclass());
$found = @$result->Subscription;
$subscriptions = is_array($found) ? $found : array($found);
foreach ($subscriptions as $subscription) {
    $request = new stdclass();
    $request->Id = @$subscription->id;
    try {
        $client->deleteSubscription($request);
        echo "deleted {$request->Id}\n";
    } catch (SoapFault $fault) {
        echo "fault {$fault->getMessage()}\n";
    }
}
echo $client->__getLastRequestHeaders();
