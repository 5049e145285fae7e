/**
 * POST /api/chat/start {}, /api/chat/message {sessionId, message}, /api/chat/end {sessionId}: conversations that survive
 * restarts of this service and of the servers. They last until the user ends them or their TTL has passed.
 * Run: npx tsx examples/conversation.ts
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, textOf, userOf } from "./server.js";

export function conversationApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/api/chat/start", async (request, response) => {
      const session = await fleet.sessions.create({ user: userOf(request), purpose: "conversation", ttl: "7d" });
      await fleet.sessions.leave(session);
      response.json({ sessionId: session.sessionId });
    });

    // The body names the session, and the proxy names the user. The fleet does not find another user's session.
    app.post("/api/chat/message", async (request, response) => {
      const user = userOf(request);
      const { text } = await fleet.sessions.use(textOf(request, "sessionId"), textOf(request, "message"), {
        user,
      });
      response.json({ content: text });
    });

    app.post("/api/chat/end", async (request, response) => {
      await fleet.sessions.delete([textOf(request, "sessionId")], { user: userOf(request) });
      response.json({ success: true });
    });
  });
}

if (process.argv[1] === import.meta.filename) await serve(conversationApp);
