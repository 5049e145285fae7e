/**
 * POST /chat {message}: one long conversation for each user, on the user's own server. A client that accepts
 * text/event-stream gets the reply piece by piece. If it closes the connection, the turn ends.
 * Run: npx tsx examples/chat.ts
 * Try: curl -N localhost:3000/chat -H 'x-authenticated-user: alice' -H 'accept: text/event-stream' --json '{"message":"hi"}'
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, stream, textOf, userOf } from "./server.js";

export function chatApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/chat", async (request, response) => {
      const user = userOf(request);
      const message = textOf(request, "message");
      const sessionId = await chatSessionOf(fleet, user);
      if (request.accepts("application/json", "text/event-stream") === "text/event-stream") {
        await stream(response, async (onDelta, signal) => {
          const { text } = await fleet.sessions.use(sessionId, message, { user, onDelta, signal });
          return { content: text };
        });
      } else {
        const { text } = await fleet.sessions.use(sessionId, message, { user });
        response.json({ content: text });
      }
    });
  });
}

/** We find the session again by its purpose. The fleet knows the owner, so the id needs no meaning. */
async function chatSessionOf(fleet: Fleet, user: string): Promise<string> {
  const existing = (await fleet.sessions.list({ user })).find(({ purpose }) => purpose === "chat");
  if (existing !== undefined) return existing.id;
  const session = await fleet.sessions.create({ user, purpose: "chat" });
  await fleet.sessions.leave(session);
  return session.sessionId;
}

if (process.argv[1] === import.meta.filename) await serve(chatApp);
