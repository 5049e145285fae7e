import { expect, it } from "vitest";
import { Relay, type RelayContext } from "../../src/gateway/routing/relay.js";
import { type Attachment, newAttachment } from "../../src/gateway/state/attachments.js";
import type { ForwardOptions } from "../../src/gateway/state/open-requests.js";
import type { ClientRequest } from "../../src/gateway/wire/client-message.js";
import type { HostRecord } from "../../src/model/host.js";
import { sessionRecord } from "../fixtures/store-records.js";

/** Relays a prompt to a session on another host. The test plays that host's front door. */
async function carried(attachment: Attachment) {
  const forwarded: ForwardOptions = {};
  const relay = new Relay({
    openRequests: {
      forward: (_link: unknown, _request: unknown, options: ForwardOptions) => void Object.assign(forwarded, options),
    },
    attachments: new Map([[attachment.sessionId, attachment]]),
    routes: { remote: async () => ({}) },
    again: () => false,
  } as unknown as RelayContext);
  const request: ClientRequest = { kind: "request", id: 1, method: "session.send", params: {}, bytes: 1 };
  await relay.session("send", {} as HostRecord, request, sessionRecord(attachment.sessionId));
  return { answer: (body: object) => forwarded.onAnswer?.({ failed: "error" in body, body: encoded(body) }) };
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
])("records no turn for a relayed prompt that another host refuses, while %s", async (_, before, inTurnNow, after) => {
  const attachment = { ...newAttachment("s", "host:h2", {}), attached: true, inTurn: before };
  const { answer } = await carried(attachment);
  expect(attachment.inTurn).toBe(true);
  if (before) attachment.inTurn = inTurnNow; // the session's events would set this
  answer(refused);
  expect(attachment.inTurn).toBe(after);
});
