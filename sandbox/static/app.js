// The sandbox's page. It holds no state of its own: the server says which list has changed, the page fetches that list
// from the control API and draws it again, keeping what is open and what has the focus.

const find = (id) => document.getElementById(id);
const state = { events: [], postbacks: [], subscriptions: [], accounts: [], requests: [], threads: [], trouble: [] };
const phone = { from: find("from"), to: find("to"), message: find("message") };

// ---- Small tools ----

/** An element: h("li.card", {title}, ...children). Properties with a dash, and role, become attributes. */
function h(kind, properties = {}, ...children) {
  const [tag, ...classes] = kind.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined) continue;
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Draw a list in place: items that did not change keep their element, with whatever is open or focused inside. */
function draw(list, items, key, render, nothing) {
  const before = new Map([...list.children].map((child) => [child.dataset.key, child]));
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  const place = [...list.children].findIndex((child) => child.contains(focused));
  const first = !list.dataset.drawn;
  list.dataset.drawn = "yes";
  const wanted = items.map((item) => {
    const id = String(key(item));
    const signature = JSON.stringify(item);
    const old = before.get(id);
    if (old && old.signature === signature) return old;
    const element = render(item);
    element.dataset.key = id;
    element.signature = signature;
    if (old) carryOver(old, element);
    else if (!first) element.classList.add("fresh");
    return element;
  });
  if (!wanted.length && nothing) {
    const old = before.get("nothing");
    const note = old ?? h("li.nothing", {}, nothing);
    note.dataset.key = "nothing";
    wanted.push(note);
  }
  wanted.forEach((element, place) => {
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
  });
  while (list.children.length > wanted.length) list.lastChild.remove();
  if (focused) queueMicrotask(() => list.contains(document.activeElement) || keepFocus(list, focused, place));
}

const FOCUSABLE = "button, summary, input, select, textarea, [tabindex]";

/** Who stood on something that has moved goes with it; if it is gone, to its neighbour or the heading of the list. */
function keepFocus(list, focused, place) {
  if (list.contains(focused)) return focused.focus();
  const neighbour = list.children[Math.min(place, list.children.length - 1)]?.querySelector(FOCUSABLE);
  const heading = list.closest("section").querySelector("h2");
  heading.tabIndex = -1;
  (neighbour ?? heading).focus();
}

/** What a person had opened or was standing on stays so when its element is drawn anew. */
function carryOver(old, element) {
  const opened = [...old.querySelectorAll("details")].map((details) => details.open);
  element.querySelectorAll("details").forEach((details, place) => (details.open = opened[place] ?? details.open));
  const place = [...old.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement);
  if (place >= 0) queueMicrotask(() => element.querySelectorAll(FOCUSABLE)[place]?.focus());
}

async function ask(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body ? { "Content-Type": "application/json" } : {},
    body: body ? JSON.stringify(body) : undefined,
  });
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error ?? `${method} ${path}: ${answer.status}`);
  return found;
}

let toastTimer;
function say(text) {
  find("toast").textContent = text;
  find("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => (find("toast").hidden = true), 7000);
}

/** Do something that may fail, and say so. */
const attempt = (work) => async (event) => {
  event?.preventDefault();
  try {
    await work(event);
  } catch (error) {
    say(error.message);
  }
};

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const dated = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
function when(moment) {
  const date = new Date(moment);
  const recent = Math.abs(Date.now() - date) < 12 * 3600e3;
  return h("time", { dateTime: moment, title: `${moment} (UTC)` }, (recent ? clock : dated).format(date));
}

/** A US number the way people write it; anything else as it is. */
function pretty(number) {
  const parts = /^\+?1(\d{3})(\d{3})(\d{4})$/.exec(number);
  return parts ? `(${parts[1]}) ${parts[2]}-${parts[3]}` : number;
}

const WAITING = ["waiting", "sending"];
const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;

// ---- Phone ----

const pair = (event) => (event.inbound === false ? [event.to_number, event.from_number] : [event.from_number, event.to_number]);
const bare = (number) => number.replace(/^\+/, "");

function drawPhone() {
  const talk = state.events.filter((event) => event.kind !== "campaign");
  const people = new Map();
  for (const event of talk) people.set(pair(event).map(bare).join(" "), pair(event));
  const current = [phone.from.value, phone.to.value].map(bare).join(" ");
  draw(find("people"), people.size > 1 || (people.size && !people.has(current)) ? [...people.values()].reverse() : [],
    (numbers) => numbers.join(" "), renderPerson);
  for (const button of find("people").children) button.setAttribute("aria-current", button.dataset.key === current);
  const shown = state.events.filter((event) => event.kind === "campaign" || pair(event).map(bare).join(" ") === current);
  const bubbles = find("bubbles");
  const atEnd = bubbles.scrollHeight - bubbles.scrollTop - bubbles.clientHeight < 60;
  const last = bubbles.lastChild?.dataset.key;
  draw(bubbles, shown.map((event) => ({ ...event, receipt: receipt(event) })), (event) => event.sequence, renderEvent);
  if (!shown.length) bubbles.replaceChildren(h("li.empty", {}, "No messages yet. Type one below: it arrives at your CallFire number."));
  if (atEnd || last !== bubbles.lastChild?.dataset.key) bubbles.scrollTop = bubbles.scrollHeight;
}

/** At the first look: the conversation in which something was said last. */
function openNewestConversation() {
  const newest = state.events.findLast((event) => event.kind !== "campaign");
  if (newest) [phone.from.value, phone.to.value] = pair(newest);
}

function renderPerson(numbers) {
  return h("button", {
    type: "button",
    title: `${numbers[0]} to ${numbers[1]}`,
    onclick: () => {
      [phone.from.value, phone.to.value] = numbers;
      drawPhone();
      phone.message.focus();
    },
  }, pretty(numbers[0]));
}

/** What became of an event, from the delivery log. */
function receipt(event) {
  const posted = state.postbacks.filter((postback) => postback.event.kind === event.kind && postback.event.id === event.id && postback.account === event.account);
  if (!posted.length) return { text: "no postback", bad: false };
  const good = posted.filter((postback) => succeeded(postback)).length;
  const waiting = posted.filter((postback) => WAITING.includes(postback.state)).length;
  if (waiting) return { text: `${plural(waiting, "postback")} under way`, bad: false };
  return { text: good === posted.length ? `posted to ${plural(good, "endpoint")} ✓` : `${posted.length - good} of ${plural(posted.length, "postback")} went wrong`, bad: good < posted.length };
}

function renderEvent(event) {
  const note = h(event.receipt.bad ? "span.receipt.bad" : "span.receipt", {}, when(event.created), ` · ${event.receipt.text}`);
  if (event.kind === "text") {
    return h(event.inbound ? "li" : "li.theirs", {}, h("span.bubble", {}, h("span.hidden", {}, event.inbound ? "You: " : "CallFire: "), event.message), note);
  }
  const text = event.kind === "call"
    ? `☏ ${event.inbound ? "Call" : "Call from CallFire"}, ${plural(event.duration, "second")} (${event.result})`
    : `Campaign “${event.name}” ${event.change.toLowerCase()}`;
  return h("li.note", {}, h("span.bubble", {}, text), note);
}

const account = () => find("account").value || undefined;
const inward = () => ({ account: account(), from: phone.from.value.trim(), to: phone.to.value.trim() });
const outward = () => ({ account: account(), from: phone.to.value.trim(), to: phone.from.value.trim(), inbound: false });

async function sendText(inbound) {
  const message = phone.message.value;
  if (!message) {
    phone.message.focus();
    return say(inbound ? "Type a message first." : "Type what CallFire replies, then press Reply from CallFire.");
  }
  await ask("POST", "/control/texts", { ...(inbound ? inward() : outward()), message });
  phone.message.value = "";
  phone.message.focus();
}

find("composer").addEventListener("submit", attempt(() => sendText(true)));
phone.message.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    find("composer").requestSubmit();
  }
});
phone.from.addEventListener("input", drawPhone);
phone.to.addEventListener("input", drawPhone);
const happen = {
  reply: () => sendText(false),
  call: () => ask("POST", "/control/calls", { ...inward(), duration: 12 }),
  callBack: () => ask("POST", "/control/calls", { ...outward(), duration: 12 }),
};
const campaign = (change) => ask("POST", "/control/campaigns", { account: account(), change });
for (const button of document.querySelectorAll("[data-event]")) {
  button.addEventListener("click", attempt(() => (happen[button.dataset.event] ?? campaign)(button.dataset.event)));
}

/** Which account something happens to can be chosen where there are several. */
function drawAccounts() {
  const logins = state.accounts.map((found) => found.login);
  find("account-choice").hidden = logins.length < 2;
  if ([...find("account").options].map((option) => option.value).join("\n") === logins.join("\n")) return;
  const chosen = find("account").value;
  find("account").replaceChildren(...logins.map((login) => h("option", {}, login)));
  find("account").value = logins.includes(chosen) ? chosen : logins[0];
}

// ---- Subscriptions ----

function drawSubscriptions() {
  find("subscriptions-tally").textContent = state.total || "";
  draw(find("subscriptions"), state.subscriptions.toReversed(), (subscription) => subscription.id, renderSubscription,
    "Nobody is subscribed. Run your program against the WSDL above, or add a subscription by hand.");
}

const FILTERS = { from_number: "from", to_number: "to", broadcast_id: "broadcast", batch_id: "batch", inbound: "inbound" };

function renderSubscription(subscription) {
  const filters = Object.entries(FILTERS).filter(([name]) => subscription.filter[name] !== null)
    .map(([name, word]) => `${word} ${subscription.filter[name]}`);
  const path = `/control/subscriptions/${subscription.id}`;
  return h(subscription.enabled ? "li.card" : "li.card.off", {},
    h("div.card-line", {},
      h("strong", {}, subscription.id),
      h("span.chip.accent", {}, subscription.trigger_event === "UNDEFINED_EVENT" ? "every event" : subscription.trigger_event),
      h("span.chip", {}, subscription.notification_format),
      subscription.enabled ? null : h("span.chip.wait", {}, "disabled"),
      h("span.actions", {},
        h("button.quiet.small", {
          type: "button",
          "aria-label": `${subscription.enabled ? "Disable" : "Enable"} subscription ${subscription.id}`,
          onclick: attempt(() => ask("PATCH", path, { enabled: !subscription.enabled })),
        }, subscription.enabled ? "Disable" : "Enable"),
        h("button.quiet.small", {
          type: "button",
          "aria-label": `Delete subscription ${subscription.id}`,
          onclick: attempt(() => ask("DELETE", path)),
        }, "Delete"))),
    h("p.url", {}, subscription.endpoint),
    h("p.about", {}, [
      filters.length ? `Only ${filters.join(", ")}` : "No filter",
      subscription.non_strict_ssl ? "any certificate" : null,
      state.accounts.length > 1 ? `account ${subscription.account}` : null,
    ].filter(Boolean).join(" · ")));
}

find("add-subscription").addEventListener("submit", attempt(async (event) => {
  const form = event.target;
  await ask("POST", "/control/subscriptions", Object.fromEntries(new FormData(form)));
  form.elements.endpoint.value = "";
}));

// ---- Postbacks ----

const succeeded = (postback) => postback.state === "answered" && (postback.answer.status === null || Math.floor(postback.answer.status / 100) === 2);

function outcome(postback) {
  if (postback.state === "answered" && postback.answer.status === null) return ["good", "mailed"];
  if (postback.state === "answered") return [succeeded(postback) ? "good" : "bad", String(postback.answer.status)];
  return [{ failed: "bad", lost: "bad" }[postback.state] ?? "wait", postback.state];
}

function drawPostbacks() {
  find("postbacks-tally").textContent = state.postbacks.at(-1)?.id ?? "";
  draw(find("postbacks"), state.postbacks.slice(-60).reverse(), (postback) => postback.id, renderPostback,
    "No postbacks yet. Send a text from the phone.");
}

const took = (seconds) => (seconds === null ? "" : seconds < 1 ? `${Math.max(1, Math.round(seconds * 1000))} ms` : `${seconds.toFixed(1)} s`);

function renderPostback(postback) {
  const [tone, word] = outcome(postback);
  const body = h("div.detail");
  const details = h("details", { ontoggle: () => details.open && !body.children.length && fill() },
    h("summary", {},
      h(`span.chip.${tone}`, {}, word),
      h("span.what", {}, `${postback.event.kind} ${postback.event.id} `, h("small", {}, `→ ${postback.subscription_id}${notes(postback)}`)),
      when(postback.sent ?? postback.queued)),
    body);
  function fill() {
    body.append(
      h("div.card-line", {},
        h("button.quiet.small", { type: "button", onclick: attempt(() => ask("POST", `/control/postbacks/${postback.id}/resend`)) }, "Resend"),
        h("span.about", {}, `Postback ${postback.id}, ${took(postback.duration) || "not sent yet"}`)),
      postback.error ? h("p", {}, h("span.chip.bad", {}, "error"), ` ${postback.error}`) : "",
      postback.request.body && section("Request", `POST ${postback.endpoint}\n${headerLines(postback.request.headers)}\n\n${indent(postback.request.body)}`),
      postback.answer.status === null ? "" : section("Answer", `${postback.answer.status}\n${headerLines(postback.answer.headers)}\n\n${postback.answer.body}`.trim()));
  }
  return h("li", {}, details);
}

const notes = (postback) => [postback.trouble && ` · ${postback.trouble}`, postback.resend_of && ` · resend of ${postback.resend_of}`, postback.duration !== null && ` · ${took(postback.duration)}`].filter(Boolean).join("");
const section = (title, text) => h("div", {}, h("h3", {}, title), h("pre", { tabIndex: 0 }, text));
const headerLines = (headers) => Object.entries(headers).map(([name, value]) => `${name}: ${value}`).join("\n");

/** One-line XML or JSON with line breaks, for reading only. */
function indent(body) {
  if (body.startsWith("{")) {
    try { return JSON.stringify(JSON.parse(body), null, 2); } catch { return body; }
  }
  let depth = 0;
  return body.replace(/>\s*</g, ">\n<").split("\n").map((line) => {
    if (/^<\//.test(line)) depth = Math.max(0, depth - 1);
    const shown = "  ".repeat(depth) + line;
    if (/^<[^?!/][^>]*[^/]>$/.test(line) && !/<\//.test(line)) depth += 1;
    return shown;
  }).join("\n");
}

// ---- Mailbox ----

function drawThreads() {
  const count = state.threads.reduce((sum, thread) => sum + thread.messages.length, 0);
  find("mail-tally").textContent = count || "";
  find("clear-mail").hidden = !count;
  const list = find("threads");
  const first = list.querySelector("details");
  draw(list, state.threads, (thread) => thread.messages[0].message_id ?? thread.messages[0].id, renderThread,
    "No mail yet. What your program sends to the SMTP port above arrives here.");
  if (!first && list.querySelector("details")) list.querySelector("details").open = true;
}

const sender = (mail) => mail.headers.From?.replace(/\s*<[^<>]*>\s*$/, "").replace(/^"(.*)"$/, "$1") || mail.mail_from || "nobody";

function renderThread({ messages }) {
  const last = messages.at(-1);
  return h("li.thread", {}, h("details", {},
    h("summary", {},
      h("span.thread-top", {},
        h("span.who", {}, sender(last)),
        messages.length > 1 ? h("span.chip", { title: "mails in this conversation" }, messages.length) : null,
        when(last.received)),
      h("span.subject", {}, messages[0].subject || "(no subject)"),
      h("span.snippet", {}, last.text.trim().split("\n").at(-1))),
    messages.map(renderMail)));
}

function renderMail(mail) {
  return h("article.mail", { "aria-label": `Mail ${mail.id}` },
    h("div.mail-head", {},
      h("span.who", {}, sender(mail)),
      when(mail.received),
      h("span.to", {}, `to ${mail.rcpt_to.join(", ")}`)),
    h("div.text", {}, mail.text || (mail.html ? "(HTML only: see the raw mail)" : "(empty)")),
    h("details", {}, h("summary", {}, "Headers"),
      h("dl.headers", {}, Object.entries(mail.headers).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("a", { href: `/mailbox/messages/${mail.id}/raw` }, "Raw mail")));
}

find("clear-mail").addEventListener("click", attempt(() => ask("DELETE", "/mailbox/messages")));

// ---- Trouble and API calls ----

const kindLabel = (kind) => document.querySelector(`#trouble-kind option[value="${kind}"]`)?.textContent ?? kind;

function drawTrouble() {
  draw(find("trouble"), state.trouble, (rule) => rule.id, (rule) => h(rule.used_up ? "li.used" : "li", {},
    h("span", {}, kindLabel(rule.kind), rule.operation ? ` (${rule.operation})` : ""),
    h(rule.used_up ? "span.chip" : "span.chip.wait", {}, rule.used_up ? `done, ${rule.struck}×` : `${often(rule)}, ${rule.struck}× so far`),
    h("span.spacer"),
    h("button.quiet.small", { type: "button", "aria-label": `Remove trouble: ${kindLabel(rule.kind)}`, onclick: attempt(() => ask("DELETE", `/control/trouble/${rule.id}`)) }, "Remove")));
}

function often(rule) {
  if (rule.times) return rule.times === 1 ? "next time" : `next ${rule.times}`;
  return rule.probability === 1 ? "every time" : `${Math.round(rule.probability * 100)} %`;
}

const TIMED = ["soap-slow", "soap-hang", "postback-late", "mail-greylist", "mail-hang"];
function fitTroubleForm() {
  find("trouble-seconds").hidden = !TIMED.includes(find("trouble-kind").value);
  find("trouble-operation").hidden = !find("trouble-kind").value.startsWith("soap-");
}
find("trouble-kind").addEventListener("change", fitTroubleForm);
fitTroubleForm();
find("add-trouble").addEventListener("submit", attempt(async (event) => {
  const { kind, often: chosen, seconds, operation } = Object.fromEntries(new FormData(event.target));
  const rule = { kind, ...{ once: {}, 3: { times: 3 }, half: { probability: 0.5 }, always: { probability: 1 } }[chosen] };
  if (TIMED.includes(kind)) rule.seconds = Number(seconds);
  if (kind.startsWith("soap-") && operation) rule.operation = operation;
  await ask("POST", "/control/trouble", rule);
}));

function drawRequests() {
  find("requests-tally").textContent = state.requests.at(-1)?.id ?? "";
  draw(find("requests"), state.requests.slice(-40).reverse(), (call) => call.id, renderCall,
    "No SOAP calls yet.");
}

function renderCall(call) {
  const body = h("div.detail");
  const details = h("details", { ontoggle: () => details.open && !body.children.length && body.append(section("Request", indent(call.request)), section("Answer", indent(call.answer))) },
    h("summary", {},
      h(call.status === 200 ? "span.chip.good" : "span.chip.bad", {}, call.status ?? "dropped"),
      h("span.what", {}, `${call.operation} `, h("small", {}, [`API ${call.version}`, call.account, call.fault, call.trouble, took(call.duration)].filter(Boolean).join(" · "))),
      when(call.at)),
    body);
  return h("li", {}, details);
}

// ---- The whole ----

async function drawFacts() {
  const about = await ask("GET", "/healthz");
  const facts = { WSDL: about.wsdl, Login: about.login, Password: about.password, SMTP: `${location.hostname}:${about.smtp_port}` };
  find("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => h("div", {}, h("dt", {}, name),
    h("dd", {}, h("button", {
      type: "button",
      title: "Copy",
      "aria-label": `Copy ${name}: ${value}`,
      onclick: attempt(async () => {
        await navigator.clipboard.writeText(value);
        say(`${name} copied.`);
      }),
    }, value)))));
}

find("reset").addEventListener("click", attempt(async () => {
  if (!confirm("Remove all subscriptions, mails and logs of this sandbox?")) return;
  await ask("POST", "/control/reset");
  heard.postback = 0;
  say("The sandbox is as it was at its start.");
}));

const heard = { postback: 0, mail: 0 };

/** Say in words what came since the last look, for those who cannot see it appear. */
function tellNews() {
  const posted = state.postbacks.filter((postback) => postback.id > heard.postback && !WAITING.includes(postback.state));
  const mails = state.threads.flatMap((thread) => thread.messages).filter((mail) => mail.id > heard.mail);
  heard.postback = Math.max(heard.postback, ...posted.map((postback) => postback.id));
  heard.mail = Math.max(heard.mail, ...mails.map((mail) => mail.id));
  if (!state.looked || !(posted.length + mails.length)) return;
  const about = (things, word, one) => (things.length === 1 ? one(things[0]) : things.length ? plural(things.length, word) : null);
  find("news").textContent = [
    about(posted, "postback", (postback) => `Postback to ${postback.subscription_id}: ${outcome(postback)[1]}`),
    about(mails, "new mail", (mail) => `New mail from ${sender(mail)}: ${mail.subject}`),
  ].filter(Boolean).join(". ");
}

const LISTS = {
  events: ["/control/events?limit=300", "events"],
  postbacks: ["/control/postbacks?limit=200", "postbacks"],
  subscriptions: ["/control/subscriptions?limit=100", "subscriptions"],
  accounts: ["/control/accounts", "accounts"],
  requests: ["/control/requests?limit=40", "requests"],
  mails: ["/mailbox/threads?limit=200", "threads"],
  trouble: ["/control/trouble", "trouble"],
};
const DRAW = {
  events: [drawPhone], postbacks: [drawPhone, drawPostbacks], subscriptions: [drawSubscriptions], accounts: [drawAccounts, drawSubscriptions],
  requests: [drawRequests], mails: [drawThreads], trouble: [drawTrouble],
};

let looking = Promise.resolve();
/** Fetch and draw what changed, one look after the other, so that an older answer never replaces a newer one. */
function look(topics) {
  looking = looking.then(async () => {
    await Promise.all(topics.map(async (topic) => {
      const [path, name] = LISTS[topic];
      const found = await ask("GET", path);
      state[name] = found[name];
      state.total = found.total ?? state.total;
    }));
    if (!state.looked) openNewestConversation();
    for (const redraw of new Set(topics.flatMap((topic) => DRAW[topic]))) redraw();
    tellNews();
    state.looked = true;
  }).catch((error) => say(error.message));
  return looking;
}

const live = find("live");
const changes = new EventSource("/control/changes");
changes.addEventListener("hello", async () => {
  await look(Object.keys(LISTS));
  live.textContent = "Live";
  live.classList.add("on");
});
changes.addEventListener("change", (event) => look(JSON.parse(event.data)));
changes.addEventListener("error", () => {
  live.textContent = "The sandbox is gone; waiting for it…";
  live.classList.remove("on");
});
addEventListener("pagehide", () => changes.close());
drawFacts().catch((error) => say(error.message));
