package example;

import com.callfire.*;
import jakarta.xml.ws.BindingProvider;
import jakarta.xml.ws.Holder;
import java.net.URL;
import java.util.List;

/** The five operations and a fault, through classes generated from the WSDL: prints one JSON object. */
public class SoapClient {
    public static void main(String[] arguments) throws Exception {
        SubscriptionServicePortType service = new CallFireApi(new URL(arguments[0])).getSubscriptionServicePort();
        ((BindingProvider) service).getRequestContext().put(BindingProvider.USERNAME_PROPERTY, arguments[1]);
        ((BindingProvider) service).getRequestContext().put(BindingProvider.PASSWORD_PROPERTY, arguments[2]);

        Subscription.SubscriptionFilter filter = new Subscription.SubscriptionFilter();
        filter.setToNumber("15555550100");
        Subscription subscription = new Subscription();
        subscription.setEndpoint("http://127.0.0.1:1/java");
        subscription.setTriggerEvent(SubscriptionTriggerEvent.INBOUND_TEXT_FINISHED);
        subscription.setSubscriptionFilter(filter);
        SubscriptionRequest create = new SubscriptionRequest();
        create.setSubscription(subscription);
        long id = service.createSubscription(create);

        IdRequest same = new IdRequest();
        same.setId(id);
        Subscription got = service.getSubscription(same);

        Subscription change = new Subscription();
        change.setId(id);
        change.setEnabled(false);
        SubscriptionRequest update = new SubscriptionRequest();
        update.setSubscription(change);
        service.updateSubscription(update);

        Holder<Long> total = new Holder<>();
        Holder<List<Subscription>> found = new Holder<>();
        service.querySubscriptions(null, null, total, found);
        service.deleteSubscription(same);
        String fault = null;
        try {
            service.getSubscription(same);
        } catch (ServiceFault error) {
            fault = error.getFaultInfo().getFaultCode() + ": " + error.getFaultInfo().getMessage();
        }
        System.out.printf(
            "{\"endpoint\": \"%s\", \"format\": \"%s\", \"to\": \"%s\", \"total\": %d, \"enabled\": %b, \"fault\": \"%s\"}%n",
            got.getEndpoint(), got.getNotificationFormat(), got.getSubscriptionFilter().getToNumber(),
            total.value, found.value.get(0).isEnabled(), fault);
    }
}
