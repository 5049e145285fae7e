import type { Socket } from "node:net";

/**
 * Passes bytes between two sockets in both directions, and the end of each direction. A side that reads slowly slows the
 * other one down. Resolves when both have closed. Never rejects.
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
      // After an orderly end, the other side still gets what is on its way.
      if (from.readableEnded) to.destroySoon();
      else to.destroy();
      resolve();
    };
    if (from.destroyed) onClose();
    else from.once("close", onClose);
  });
}
