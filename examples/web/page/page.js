/** The page: sign-on, the conversation, and the reply as it comes. */
import { ask, conversation, SignedOff, turn } from "./fleet.js";

const element = (id) => document.getElementById(id);
let session;

/** Runs an action, and shows why it failed. */
async function attempt(action) {
  element("problem").textContent = "";
  try {
    await action();
  } catch (error) {
    const isSignedOff = error instanceof SignedOff;
    element("sign-on").hidden = !isSignedOff;
    element("chat").hidden = isSignedOff;
    element("problem").textContent = isSignedOff ? "" : error.message;
  }
}

function on(id, type, action) {
  element(id).addEventListener(type, (event) => {
    event.preventDefault();
    void attempt(() => action(event.target));
  });
}

/** Adds a message. Its text is only ever text, never HTML. */
function show(who, text) {
  const item = document.createElement("li");
  item.className = who;
  item.dir = "auto";
  item.textContent = text;
  element("conversation").append(item);
  return item;
}

/** Shows what the agent needs: a permission, or an answer. `turn` in fleet.js yields such requests among its events. */
function showRequest({ id, permission, question }) {
  const text = permission
    ? `May the agent do this?\n${permission.fullCommandText ?? JSON.stringify(permission)}`
    : question.question;
  const item = show("request", `${text}\n`);
  item.id = `request-${id}`;
  const add = (label, answer) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    const send = () => ask("POST", `/v1/sessions/${session}/requests/${id}`, answer());
    button.addEventListener("click", () => void attempt(send));
    item.append(button);
  };
  if (permission) {
    add("Allow", () => ({ decision: "approve" }));
    add("Deny", () => ({ decision: "deny" }));
    return;
  }
  for (const choice of question.choices ?? []) add(choice, () => ({ answer: choice }));
  if (!question.freeform) return;
  const input = document.createElement("input");
  input.ariaLabel = question.question;
  item.append(input);
  add("Answer", () => ({ answer: input.value }));
}

async function open() {
  session = await conversation();
  const { entries } = await (await ask("GET", `/v1/sessions/${session}/transcript`)).json();
  element("conversation").replaceChildren();
  for (const { role, text } of entries) if (text !== "") show(role, text);
  const { requests } = await (await ask("GET", `/v1/sessions/${session}/requests`)).json();
  for (const request of requests) showRequest(request);
  element("sign-on").hidden = true;
  element("chat").hidden = false;
}

on("sign-on", "submit", async (form) => {
  const body = JSON.stringify(Object.fromEntries(new FormData(form)));
  const answer = await fetch("sign-on", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (!answer.ok) throw new Error("The user or the password is wrong.");
  form.reset();
  await open();
});

on("prompt", "submit", async (form) => {
  const message = new FormData(form).get("message");
  form.reset();
  show("user", message);
  const reply = show("assistant", "");
  element("send").disabled = true;
  try {
    for await (const { event, data } of turn(session, message)) {
      if (event === "assistant.message_delta") reply.textContent += data.data.deltaContent;
      if (event === "request.opened") showRequest(data);
      if (event === "request.closed") element(`request-${data.id}`)?.remove();
      if (event === "turn.end") reply.textContent = data.reply;
      if (event === "problem") throw new Error(data.detail);
    }
  } finally {
    element("send").disabled = false;
  }
});

on("abort", "click", async () => await ask("POST", `/v1/sessions/${session}/abort`));

on("end", "click", async () => {
  await ask("DELETE", `/v1/sessions/${session}`);
  await open();
});

void attempt(open);
