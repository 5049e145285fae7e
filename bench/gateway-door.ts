/** A front door in a process of its own, for `bench/gateway.ts`: prints where it listens, and closes with its input. */
import { Fleet } from "../src/index.js";

await using fleet = await Fleet.open();
await using door = await fleet.openFrontDoor({ listen: { host: "127.0.0.1", port: 0 } });
process.stdout.write(`${JSON.stringify({ port: door.address.port })}\n`);
for await (const _ of process.stdin);
