import type { Socket } from "node:net";

/**
 * Forwards bytes between two sockets in both directions. Also forwards the end of each direction. If one side reads
 * slowly, the other side has to send slowly. Resolves when both sockets have closed. Never rejects.
 */
export async function splice(one: Socket, other: Socket): Promise<void> {
  const ends = [joined(one, other), joined(other, one)];
  await Promise.all(ends);
}

async function joined(from: Socket, to: Socket): Promise<void> {
  from.on("error", () => undefined); // `close` follows
  from.pipe(to);
  await new Promise<void>((resolve) => {
    const onClose = () => {
      // After an orderly end, `to` still sends what it has buffered.
      if (from.readableEnded) to.destroySoon();
      else to.destroy();
      resolve();
    };
    if (from.destroyed) onClose();
    else from.once("close", onClose);
  });
}
