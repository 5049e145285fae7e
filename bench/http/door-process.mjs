// Opens the HTTP API of the built library in a process of its own, like the parts in `bench/gateway-process.ts`. The sources
// are not used here, because `tsx` gives each function a name in a way that costs memory.
import { createInterface } from "node:readline";
import { Fleet } from "../../dist/index.js";

const fleet = await Fleet.open();
const door = await fleet.openHttpDoor({ listen: { host: "127.0.0.1", port: 0 } });
say({ url: door.url });
for await (const _ of createInterface({ input: process.stdin })) {
  // Collect twice, because finalizers of the first collection release objects that only the second can collect.
  globalThis.gc?.();
  globalThis.gc?.();
  say(process.memoryUsage());
}
await door.close();
await fleet.close();

function say(message) {
  process.stdout.write(`${JSON.stringify(message)}\n`);
}
