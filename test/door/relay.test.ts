import { expect, it } from "vitest";
import type { HostRecord } from "../../src/base/host.js";
import { Relay } from "../../src/door/routing/relay.js";
import type { Router } from "../../src/door/routing/router.js";
import { type Attachment, type ClientState, newAttachment } from "../../src/door/state/client-state.js";
import { RequestLines } from "../../src/door/state/links.js";
import type { ForwardOptions } from "../../src/door/state/open-requests.js";
import type { ClientRequest } from "../../src/door/wire/client-message.js";
import { sessionRecord } from "../fixtures/store/store-records.js";

/** Relays a prompt to a session on another host. The test plays that host's front door. */
async function relayed(attachment: Attachment) {
  const forwarded: ForwardOptions = {};
  const requests = {
    forward: (_link: unknown, _request: unknown, options: ForwardOptions) => void Object.assign(forwarded, options),
  };
  const attachments = new Map([[attachment.sessionId, attachment]]);
  const state = { requests, attachments, lines: new RequestLines({ looksAgain: false }) } as unknown as ClientState;
  const relay = new Relay(state, { linkThere: async () => ({}) } as unknown as Router);
  const request: ClientRequest = { kind: "request", id: 1, method: "session.send", params: {}, bytes: 1 };
  await relay.session({ handler: "send" }, {} as HostRecord, request, sessionRecord(attachment.sessionId));
  const answer = (body: object) =>
    forwarded.onAnswer?.({ failed: "error" in body, body: encoded(body), messageIds: null });
  return { answer };
}

function encoded(body: object): Buffer {
  return Buffer.from(JSON.stringify(body));
}

const refused = {
  jsonrpc: "2.0",
  id: 1,
  error: { code: -32003, message: "no", data: { code: "FLEET_SESSION_LOCKED" } },
};

it.each([
  ["no other turn is running", false, false, false],
  ["an earlier turn is still running", true, true, true],
  ["an earlier turn has just ended", true, false, false],
])(
  "when %s, the front door records no turn for a relayed prompt that another host refuses",
  async (_, before, inTurnNow, after) => {
    const attachment = { ...newAttachment("s", "host:h2", {}), attached: true, inTurn: before };
    const { answer } = await relayed(attachment);
    expect(attachment.inTurn).toBe(true);
    if (before) attachment.inTurn = inTurnNow; // the session's events would set this
    answer(refused);
    expect(attachment.inTurn).toBe(after);
  },
);
