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

async function open() {
  session = await conversation();
  const { entries } = await (await ask("GET", `/v1/sessions/${session}/transcript`)).json();
  element("conversation").replaceChildren();
  for (const { role, text } of entries) if (text !== "") show(role, text);
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
