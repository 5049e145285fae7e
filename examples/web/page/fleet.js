/** The fleet's HTTP API, as the user who has signed on to the application. */

/** How long a turn may take at most. The token must be valid for longer. */
const TURN_MIN = 30;
let access = { token: "", api: "", endsAt: 0 };

/** Nobody has signed on to the application. */
export class SignedOff extends Error {}

/**
 * Makes a request, with a new token from the application if the last one does not last for another turn.
 *
 * @throws SignedOff, or an Error with the detail that the fleet gives
 */
export async function ask(method, path, body, headers = {}) {
  if (access.endsAt < Date.now() + TURN_MIN * 60_000) {
    const answer = await fetch("token", { method: "POST" });
    if (!answer.ok) throw new SignedOff();
    const { token, api, validForS } = await answer.json();
    access = { token, api, endsAt: Date.now() + validForS * 1000 };
  }
  const response = await fetch(access.api + path, {
    method,
    headers: { Authorization: `Bearer ${access.token}`, "Content-Type": "application/json", ...headers },
    body: body && JSON.stringify(body),
  });
  if (!response.ok) throw new Error((await response.json()).detail);
  return response;
}

/** The id of the user's conversation. It is found by its purpose. It survives reloads, and restarts of everything. */
export async function conversation() {
  const { sessions } = await (await ask("GET", "/v1/sessions?purpose=chat&limit=1")).json();
  if (sessions.length > 0) return sessions[0].id;
  return (await (await ask("POST", "/v1/sessions", { purpose: "chat", ttl: "7d" })).json()).session.id;
}

/** Runs a turn, and yields its events as they come: `{ event, data }`. The last one is `turn.end` or `problem`. */
export async function* turn(session, prompt) {
  const body = { prompt, timeout: `${TURN_MIN}m` };
  const response = await ask("POST", `/v1/sessions/${session}/turns`, body, { Accept: "text/event-stream" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const [, event] = /^event: (.*)$/m.exec(part) ?? [];
      const [, data] = /^data: (.*)$/m.exec(part) ?? [];
      // A comment, which keeps the connection open, has neither.
      if (event !== undefined) yield { event, data: JSON.parse(data) };
    }
  }
}
