/**
 * POST /api/chat/start {}, /api/chat/message {sessionId, message}, /api/chat/end {sessionId}: conversations that survive
 * restarts of this service and of the servers, until they are ended or their time is up.
 * Run: npx tsx examples/conversation.ts
 */
import type { Fleet } from "copilotfleet";
import { newApp, serve, userOf } from "./server.js";

export function conversationApp(fleet: Fleet) {
  return newApp((app) => {
    app.post("/api/chat/start", async (request, response) => {
      const session = await fleet.createSession({ user: userOf(request), purpose: "conversation", ttl: "7d" });
      await fleet.leaveSession(session);
      response.json({ sessionId: session.sessionId });
    });

    // The session is the body's, the user is not: somebody else's session is not found.
    app.post("/api/chat/message", async (request, response) => {
      const { sessionId, message } = request.body;
      const { reply } = await fleet.exchange(sessionId, message, { user: userOf(request) });
      response.json({ content: reply.text });
    });

    app.post("/api/chat/end", async (request, response) => {
      await fleet.deleteSessions([request.body.sessionId], userOf(request));
      response.json({ success: true });
    });
  });
}

if (process.argv[1] === import.meta.filename) await serve(conversationApp);
