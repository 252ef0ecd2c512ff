// Search without a server: a browser starts no worker from a page that was opened as a file, so the
// search's worker runs in a hidden frame of the page instead.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      this.frame = frame
      window.addEventListener("message", (event) => {
        if (event.source === frame.contentWindow)
          this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
      const start = "postMessage = (data) => parent.postMessage(data, '*')"
      frame.contentDocument.open()
      frame.contentDocument.write(
        `<script>${start}</script><script src="${new URL(url, location.href)}"></script>`
      )
      frame.contentDocument.close()
      // What is sent before the worker listens would be lost.
      this.ready = new Promise((go) => frame.contentWindow.addEventListener("load", go))
    }
    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
      )
    }
  }
  window.Worker = window.IFrameWorker
}
