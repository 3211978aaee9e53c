// Node's `soap` against the sandbox: the five operations, and what it makes of a fault.
import { createRequire } from "node:module";

const [modules, wsdl, login, password, version] = process.argv.slice(2);
const soap = createRequire(`${modules}/`)("soap");
const options = version === "1.2" ? { forceSoap12Headers: true } : {};
const client = await soap.createClientAsync(wsdl, options);
client.setSecurity(new soap.BasicAuthSecurity(login, password));
const service = client.CallFireApi.SubscriptionServicePort;
const call = (operation, request) =>
  new Promise((resolve, reject) => service[operation](request, (error, result) => (error ? reject(error) : resolve(result))));

const fields = { Endpoint: "http://127.0.0.1:1/node", TriggerEvent: "INBOUND_TEXT_FINISHED", SubscriptionFilter: { ToNumber: "15555550100" } };
const created = await call("CreateSubscription", { Subscription: fields });
const id = created?.$value ?? created;
const got = await call("GetSubscription", { Id: id });
await call("UpdateSubscription", { Subscription: { attributes: { id }, Enabled: false } });
const found = await call("QuerySubscriptions", {});
await call("DeleteSubscription", { Id: id });
const fault = await call("GetSubscription", { Id: id }).then(() => null, (error) => error.message);
console.log(JSON.stringify({ id, got, found, fault }));
