/**
 * POST /chat {message}: each user's one long conversation, on the user's own server.
 * Run: npx tsx examples/chat.ts
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, userOf } from "./server.js";

export function chatApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/chat", async (request, response) => {
      const user = userOf(request);
      const sessionId = await chatSessionOf(fleet, user);
      const { reply } = await fleet.exchange(sessionId, request.body.message, { user });
      response.json({ content: reply.text });
    });
  });
}

/** The id says whose it is to people only; the fleet looks up the owner, whatever the id reads. */
async function chatSessionOf(fleet: Fleet, user: string): Promise<string> {
  const existing = (await fleet.sessions(user)).find(({ purpose }) => purpose === "chat");
  if (existing !== undefined) return existing.id;
  const session = await fleet.createSession({ user, purpose: "chat" });
  await fleet.leaveSession(session);
  return session.sessionId;
}

if (process.argv[1] === import.meta.filename) await serve(chatApp);
